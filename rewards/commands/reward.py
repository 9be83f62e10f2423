"""``winsome reward``: train, evaluate, serve, calibrate."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from annotate.records import Split

HELP = "Train a reward model on designers' picks, measure one, serve scorers."
EXAMPLE = "winsome reward train configs/tiny/reward.yaml seed=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser(
        "train",
        help="train on a snapshot, or continue an interrupted run",
        description="Trains a reward model on a snapshot; run again, it continues exactly.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", type=Path, help="YAML file of settings")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. head.width=128")
    evaluate = actions.add_parser(
        "evaluate",
        help="measure a reward model on a split of any snapshot",
        description="Measures a reward model on picks whose prompts it was not trained on.",
        epilog="example:\n  winsome reward evaluate runs/reward snapshots/july --minimum 0.65",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("model", type=Path, help="folder that `winsome reward train` wrote")
    evaluate.add_argument("snapshot", type=Path, help="folder of a snapshot")
    evaluate.add_argument("--images", type=Path, help="its images, when it was cut without them")
    evaluate.add_argument("--base", help="the base pipeline; default: the one named at training")
    evaluate.add_argument(
        "--split", type=Split, choices=list(Split), default=Split.TEST, help="default: test"
    )
    evaluate.add_argument("--device", default="cpu", help="default: cpu")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    evaluate.add_argument("--page", type=Path, metavar="FILE", help="write it as an HTML page")
    evaluate.add_argument(
        "--minimum", type=float, metavar="ACCURACY", help="exit with status 1 below this accuracy"
    )

    splits = actions.add_parser(
        "splits",
        help="find alike prompts, and whether they stand in one split",
        description="Prints the sizes of the components of alike prompts of a snapshot, by text "
        "and image, and exits with status 1 when one is cut by the splits or too large.",
        epilog="example:\n  winsome reward splits snapshots/july",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    splits.add_argument("snapshot", type=Path, help="folder of a snapshot")
    splits.add_argument("--images", type=Path, help="its images, when it was cut without them")
    splits.add_argument("--by-text-alone", action="store_true", help="do not compare images")
    _add_serving(actions)


def _add_serving(actions: Any) -> None:
    serve = actions.add_parser(
        "serve",
        help="score for other processes over HTTP",
        description="Serves scorers over HTTP until interrupted; docs/rewards.md has the protocol.",
        epilog="example:\n  winsome reward serve configs/reward_server/text.yaml port=8101",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("config", type=Path, help="YAML file of settings")
    serve.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. max_queue=64")
    calibrate = actions.add_parser(
        "calibrate",
        help="measure the scales of a mix's scorers",
        description="Scores a snapshot's images with each training scorer of a mix and writes the "
        "mean and deviation where the mix looks for them.",
        epilog="example:\n  winsome reward calibrate mix.yaml snapshots/july --limit 500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("mix", type=Path, help="YAML file of a reward mix")
    calibrate.add_argument("snapshot", type=Path, help="folder of a snapshot")
    calibrate.add_argument("--images", type=Path, help="its images, when it was cut without them")
    calibrate.add_argument("--limit", type=int, metavar="N", help="score N images; default: all")


def run(args: argparse.Namespace) -> int | None:
    actions = {
        "train": _train,
        "evaluate": _evaluate,
        "splits": _splits,
        "serve": _serve,
        "calibrate": _calibrate,
    }
    return actions[args.action](args)


def _train(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.config import RewardTrainConfig

    config = load_config(RewardTrainConfig, args.config, args.overrides)
    from rewards.train import train_reward

    result = train_reward(config)
    print(describe_report(result.report))
    print(f"reward model: {result.folder}")


def _evaluate(args: argparse.Namespace) -> int:
    from annotate.records import load_snapshot
    from rewards.evaluate import evaluate_model
    from rewards.folder import write_json
    from rewards.scorers import load_scorer

    snapshot = load_snapshot(args.snapshot, images=args.images)
    scorer = load_scorer(args.model, base=args.base, device=args.device)
    report = evaluate_model(args.model, scorer, snapshot, args.split)
    if args.json:
        write_json(args.json, report)
    if args.page:
        from rewards.report import write_page

        write_page(report, args.page, args.minimum)
    print(describe_report(report))
    if args.minimum is not None and report["accuracy"] < args.minimum:
        print(f"below the minimum accuracy of {args.minimum:.3f}")
        return 1
    return 0


def _splits(args: argparse.Namespace) -> int:
    from annotate.records import load_snapshot
    from rewards.components import check_components, find_components, perceptual_hash
    from rewards.images import open_candidate
    from rewards.splits import LeakError

    snapshot = load_snapshot(args.snapshot, images=args.images)
    hashes: dict[str, list[bytes]] = {}
    for candidate in () if args.by_text_alone else snapshot.candidates:
        found = perceptual_hash(open_candidate(snapshot, candidate))
        hashes.setdefault(candidate.prompt_id, []).append(found)
    components = find_components(snapshot.prompts, hashes)
    sizes = Counter(len(component.prompt_ids) for component in components)
    print(f"{len(snapshot.prompts)} prompts, {len(components)} components")
    for size, count in sorted(sizes.items(), reverse=True):
        print(f"{count:6} of {size} prompt{'s' if size > 1 else ''}")
    try:
        check_components(components, {prompt.id: prompt.split for prompt in snapshot.prompts})
    except LeakError as error:
        print(f"refused: {error}")
        return 1
    return 0


def _serve(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.scorers.config import RewardServerConfig

    config = load_config(RewardServerConfig, args.config, args.overrides)
    from rewards.scorers.build import build_scorer, read_token
    from rewards.service.server import RewardServer, ServerSettings

    settings = config.model_dump(exclude={"scorers", "token_file"})
    token = read_token(config.token_file)
    server = RewardServer(
        lambda: [build_scorer(scorer) for scorer in config.scorers],
        ServerSettings(token=token, **settings),
    )
    with server:
        print(f"loading; health at {server.url}/v1/health", flush=True)
        server.wait_until_ready()
        print(f"ready: {server.url}", flush=True)
        server.wait()


def _calibrate(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.scorers.config import RewardMixConfig

    config = load_config(RewardMixConfig, args.mix)
    from annotate.records import load_snapshot
    from rewards.composition import calibrate
    from rewards.scorers.build import build_scorer, snapshot_items

    items = snapshot_items(load_snapshot(args.snapshot, images=args.images), args.limit)
    for part in config.training:
        found = calibrate(build_scorer(part.scorer), items)
        path = args.mix.parent / part.calibration
        found.save(path)
        print(f"{path}: {found.scorer} mean {found.mean:.4g}, std {found.std:.4g}, {found.count}")


def describe_report(report: dict[str, Any]) -> str:
    """A report as a small table."""
    lines = [f"{'':12} {'accuracy':>8}  {'95 % interval':^14}  {'designers':>9}  {'pairs':>6}"]
    for name, row in [*report["criteria"].items(), ("mean", report)]:
        ceiling = "-" if row["ceiling"] is None else f"{row['ceiling']:.3f}"
        # The prompts of one cannot be drawn anew.
        is_known = row["ci_low"] is not None
        interval = f"{row['ci_low']:.3f} - {row['ci_high']:.3f}" if is_known else "none: 1 prompt"
        lines.append(
            f"{name:12} {row['accuracy']:8.3f}  {interval:^14}  {ceiling:>9}  {row['num_pairs']:>6}"
        )
    lines.append(
        f"{report['num_picks']} picks on {report['num_prompts']} held-out prompts "
        f"({report['held_out']}); mean over {json.dumps(_averaged(report))}"
    )
    return "\n".join(lines)


def _averaged(report: dict[str, Any]) -> list[str]:
    return [name for name in report["criteria"] if name != "overall"] or ["overall"]
