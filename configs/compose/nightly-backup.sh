#!/bin/sh
# nightly-backup.sh FOLDER [once]: a checked backup of $STUDIO into FOLDER at $BACKUP_HOUR every
# night, the newest $BACKUPS_KEPT of which stay. A backup that fails is told and removes none.
set -eu
folder=$1
hour=$(expr "$BACKUP_HOUR" % 24) || [ "$hour" = 0 ]  # 08 is no octal number here
[ "$BACKUPS_KEPT" -ge 1 ] || {
    echo "nightly-backup: BACKUPS_KEPT is '$BACKUPS_KEPT', expected 1 or more" >&2
    exit 2
}

back_up() {
    name=$folder/$(date +%Y-%m-%dT%H%M%S)
    winsome db backup "$STUDIO" "$name" --images "$IMAGES" || return 1
    # Put aside, so that it never counts as one of those that stay.
    winsome db check "$STUDIO" --since "$name" --images "$IMAGES" || { mv "$name" "$name.failed"; return 1; }
    ls -d "$folder"/????-??-??T?????? | sort -r | tail -n +$((BACKUPS_KEPT + 1)) |
        while read -r old; do rm -r "$old"; done
}

if [ "${2:-}" = once ]; then
    back_up
    exit
fi
while :; do
    # What is left of this day until the hour, or of this day and that hour of the next.
    now=$(($(date +%-H) * 3600 + $(date +%-M) * 60 + $(date +%-S)))
    sleep $(((hour * 3600 - now + 86399) % 86400 + 1))
    back_up || echo "nightly-backup: no backup was made at $(date)" >&2
done
