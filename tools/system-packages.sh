#!/bin/sh
# What the tests need from the system and pip cannot bring: a C++ compiler and Python's headers
# (DeepSpeed builds its CPU operator), Chromium for the browser test, fonts with Chinese and Latin
# glyphs for its screenshots and for posters, Tesseract to read them. Missing Debian packages are
# installed as root or through sudo; where neither can be had, one line names them and the exit
# status is 1.
set -eu

python=${PYTHON:-python3}
missing=""

has() { command -v "$1" >/dev/null 2>&1; }

has c++ || has g++ || has clang++ || missing="$missing g++"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())' ||
  missing="$missing python3-dev"
has chromium || has chromium-browser || has google-chrome || missing="$missing chromium"
if ! has fc-list || [ -z "$(fc-list :lang=zh family)" ]; then
  missing="$missing fontconfig fonts-noto-cjk"
fi

[ -f /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc ] || missing="$missing fonts-noto-cjk"
[ -f /usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf ] || missing="$missing fonts-dejavu-core"
has tesseract || missing="$missing tesseract-ocr"
[ -n "$(ls /usr/share/tesseract-ocr/*/tessdata/chi_sim.traineddata 2>/dev/null)" ] ||
  missing="$missing tesseract-ocr-chi-sim"

[ -n "$missing" ] || exit 0

if ! has apt-get; then
  echo "winsome: the tests need (by their Debian names):$missing" >&2
  exit 1
elif [ "$(id -u)" = 0 ]; then
  as_root=""
elif has sudo && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  echo "winsome: the tests need system packages, and this is not root: sudo apt-get install$missing" >&2
  exit 1
fi

echo "winsome: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
