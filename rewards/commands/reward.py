"""``winsome reward``: train, evaluate, serve, calibrate."""

from __future__ import annotations

import argparse
import os
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
    train.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. head.width=128"
    )
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
    evaluate.add_argument("--base", help="what it was made of; default: as named at training")
    evaluate.add_argument(
        "--split", type=Split, choices=list(Split), default=Split.TEST, help="default: test"
    )
    evaluate.add_argument(
        "--after", type=Path, metavar="SNAPSHOT",
        help="an older snapshot: measure on what came after it, whatever its split",
    )  # fmt: skip
    evaluate.add_argument("--device", default="cpu", help="default: cpu")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    evaluate.add_argument("--page", type=Path, metavar="FILE", help="write it as an HTML page")
    evaluate.add_argument(
        "--audit",
        type=int,
        metavar="N",
        help="also edit the images of N prompts in ways that should change no score",
    )
    evaluate.add_argument(
        "--register",
        action="store_true",
        help="make this the report of the model's run, which the gate before GRPO reads",
    )
    evaluate.add_argument(
        "--minimum", type=float, metavar="ACCURACY", help="exit with status 1 below this accuracy"
    )

    _add_comparing(actions)
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


def _add_comparing(actions: Any) -> None:
    compare = actions.add_parser(
        "compare",
        help="measure two reward models on the same pairs",
        description="Accuracy of two reward models on the same held-out pairs, and the interval of "
        "the difference by bootstrap over prompts.",
        epilog="example:\n  winsome reward compare runs/reward-a runs/reward-b snapshots/july",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("first", type=Path, help="folder of a reward model")
    compare.add_argument("second", type=Path, help="folder of another")
    compare.add_argument("snapshot", type=Path, help="folder of a snapshot")
    compare.add_argument("--images", type=Path, help="its images, when it was cut without them")
    compare.add_argument("--base", help="what they were made of; default: as named at training")
    compare.add_argument(
        "--split", type=Split, choices=list(Split), default=Split.TEST, help="default: test"
    )
    compare.add_argument("--device", default="cpu", help="default: cpu")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    _add_measuring(actions)


def _add_measuring(actions: Any) -> None:
    measure = actions.add_parser(
        "measure",
        help="measure any scorers (published ones, a judge, OCR) against people's picks",
        description="Accuracy of each scorer of a file on a split's picks, as of a reward model.",
        epilog="example:\n  winsome reward measure configs/reward_server/published.yaml "
        "snapshots/july",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measure.add_argument("config", type=Path, help="YAML file with scorers, as for serve")
    measure.add_argument("snapshot", type=Path, help="folder of a snapshot")
    measure.add_argument("--images", type=Path, help="its images, when it was cut without them")
    measure.add_argument(
        "--split", type=Split, choices=list(Split), default=Split.TEST, help="default: test"
    )
    measure.add_argument(
        "--audit", type=int, metavar="N", help="also audit each for biases on N prompts"
    )
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the reports there")
    curve = actions.add_parser(
        "curve",
        help="accuracy by how many picks were learned from",
        description="Trains on shares of the training prompts, each within the next, and measures "
        "all on the same held-out picks.",
        epilog="example:\n  winsome reward curve configs/tiny/reward.yaml --shares 0.25 0.5 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    curve.add_argument("config", type=Path, help="YAML file of settings")
    curve.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. epochs=5"
    )
    curve.add_argument(
        "--shares", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0], metavar="SHARE",
        help="of the training prompts; default: an eighth, a quarter, half, all",
    )  # fmt: skip
    designers = actions.add_parser(
        "designers",
        help="leave each designer out: accuracy on whom the model never met",
        description="Trains once for each designer without their picks and measures on their "
        "held-out ones.",
        epilog="example:\n  winsome reward designers configs/tiny/reward.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    designers.add_argument("config", type=Path, help="YAML file of settings")
    designers.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. epochs=5"
    )
    designers.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="pseudonyms; default: every designer"
    )


def _add_serving(actions: Any) -> None:
    serve = actions.add_parser(
        "serve",
        help="score for other processes over HTTP",
        description="Serves scorers over HTTP until interrupted; docs/rewards.md has the protocol.",
        epilog="example:\n  winsome reward serve configs/reward_server/text.yaml port=8101",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("config", type=Path, help="YAML file of settings")
    serve.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. max_queue=64"
    )
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
        "compare": _compare,
        "measure": _measure,
        "curve": _curve,
        "designers": _designers,
        "splits": _splits,
        "serve": _serve,
        "calibrate": _calibrate,
    }
    return actions[args.action](args)


def _train(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.config import RewardTrainConfig

    config = load_config(RewardTrainConfig, args.config, args.overrides)
    from rewards.report_text import describe_report
    from rewards.train import train_reward

    result = train_reward(config)
    if os.environ.get("RANK", "0") == "0":
        print(describe_report(result.report))
        print(f"reward model: {result.folder}")


def _evaluate(args: argparse.Namespace) -> int:
    from annotate.records import load_snapshot
    from rewards.evaluate import audit_model, evaluate_model, register
    from rewards.folder import write_json
    from rewards.report_text import describe_audit, describe_report
    from rewards.scorers import load_scorer

    snapshot = load_snapshot(args.snapshot, images=args.images)
    if args.after:
        from rewards.by_time import split_by_time

        snapshot = split_by_time(snapshot, load_snapshot(args.after))
    scorer = load_scorer(args.model, base=args.base, device=args.device)
    report = evaluate_model(args.model, scorer, snapshot, args.split)
    if args.audit:
        report["audit"] = audit_model(args.model, scorer, snapshot, args.split, args.audit)
    if args.json:
        write_json(args.json, report)
    if args.page:
        from rewards.report import write_page

        write_page(report, args.page, args.minimum)
    if args.register:
        register(args.model, report, args.minimum)
    print(describe_report(report))
    if args.audit:
        print(describe_audit(report["audit"]))
    if args.minimum is not None and report["accuracy"] < args.minimum:
        print(f"below the minimum accuracy of {args.minimum:.3f}")
        return 1
    return 0


def _compare(args: argparse.Namespace) -> None:
    from annotate.records import load_snapshot
    from rewards.comparison import compare_scores
    from rewards.evaluate import held_out_sets, score_sets
    from rewards.folder import write_json
    from rewards.scorers import load_scorer

    snapshot = load_snapshot(args.snapshot, images=args.images)
    scores = []
    for folder in (args.first, args.second):
        sets = held_out_sets(folder, snapshot, args.split)
        scorer = load_scorer(folder, base=args.base, device=args.device)
        scores.append(score_sets(scorer, snapshot, sets))
    found = compare_scores(sets, *scores)
    if args.json:
        write_json(args.json, found)
    print(f"{'':12} {'first':>6} {'second':>6}  {'difference':>10}  {'95 % interval':^16}  pairs")
    for name, row in found.items():
        is_known = row["low"] is not None
        interval = f"{row['low']:+.3f} - {row['high']:+.3f}" if is_known else "none: 1 prompt"
        print(
            f"{name:12} {row['first']:6.3f} {row['second']:6.3f}  {row['difference']:+10.3f}  "
            f"{interval:^16}  {row['num_pairs']:5}"
        )


def _measure(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.scorers.config import RewardServerConfig

    config = load_config(RewardServerConfig, args.config)
    from annotate.records import load_snapshot
    from rewards.against_people import audit_scorer, measure_scorer
    from rewards.folder import write_json
    from rewards.report_text import describe_audit, describe_report
    from rewards.scorers.build import build_scorer

    snapshot = load_snapshot(args.snapshot, images=args.images)
    reports = []
    for settings in config.scorers:
        scorer = build_scorer(settings)
        report = measure_scorer(scorer, snapshot, args.split)
        print(f"{scorer.spec.name} {scorer.spec.version}")
        print(describe_report(report))
        if args.audit:
            report["audit"] = audit_scorer(scorer, snapshot, args.split, args.audit)
            print(describe_audit(report["audit"]))
        reports.append(report)
    if args.json:
        write_json(args.json, reports)


def _curve(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.config import RewardTrainConfig

    config = load_config(RewardTrainConfig, args.config, args.overrides)
    from rewards.curve import learning_curve
    from rewards.evaluate import describe_interval

    print(f"{'share':>6} {'prompts':>7} {'picks':>6}  accuracy")
    for point in learning_curve(config, args.shares):
        print(
            f"{point['share']:6g} {point['num_prompts']:7} {point['num_picks']:6}  "
            f"{point['accuracy']:.3f} ({describe_interval(point)})"
        )


def _designers(args: argparse.Namespace) -> None:
    from annotate.settings import load_config
    from rewards.config import RewardTrainConfig

    config = load_config(RewardTrainConfig, args.config, args.overrides)
    from rewards.left_out import leave_each_out
    from rewards.report_text import describe_designers

    print(describe_designers(leave_each_out(config, args.only)))


def _splits(args: argparse.Namespace) -> int:
    from annotate.records import load_snapshot
    from rewards.components import check_components, snapshot_components
    from rewards.splits import LeakError

    snapshot = load_snapshot(args.snapshot, images=args.images)
    components = snapshot_components(snapshot, images=not args.by_text_alone)
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
