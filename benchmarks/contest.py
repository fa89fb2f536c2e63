"""Code that all contests of speed share: interleaved runs in fresh processes, statistics and charts."""

import argparse
import collections
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from artefacts import THREADS
from contestants import CONTESTANTS, MATRIX, OURS, OUTSIDE, stopwatch
from matplotlib.figure import Figure
from networks import Job
from pages import BLUE, GREEN, ORANGE, add_json, cell, describe, digits, list_versions, load, replace, save, table

#: Settings of the shell that a contest must not inherit.
SETTINGS = ("TF_", "XLA_", "KERAS_", "OMP_", "KMP_", "MKL_", "TORCH")
#: Floating-point operations per multiply-add of the forward pass. Training also computes two gradients.
FLOP_PER_MAC = {"train": 6, "predict": 2}
#: Colours of the environments.
COLOURS = {"ours": BLUE, "keras": ORANGE, "torch": GREEN}
#: A contest replaces one with the same values of these.
KEYS = ("network", "side", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One contest.

    Attributes:
        network: Our name of the network.
        side: Height and width of the images, in pixels.
        batch: Number of images in a batch.
        steps: Number of steps to time in each process.
        peers: Names of the `CONTESTANTS` that take part, besides `ours`.
        ours: Contestant that peers are compared with, unless there is one of ours in the same form.
        classes: Number of classes.
        outside: Whether to measure the time that our `fit` loses between steps.
    """

    network: str
    side: int
    batch: int
    steps: int
    peers: tuple[str, ...]
    ours: str = OURS
    classes: int = 1000
    outside: bool = False


def compete(case: Case, rounds: int, run: Callable[[str, str], dict], task: str) -> dict:
    """Runs each contestant once per round, one after the other, each time in a new process.

    Args:
        case: The contest.
        rounds: Number of rounds.
        run: Function from the name of a contestant and a task to the measurements, or an "error".
        task: "train" or "predict".

    Returns:
        "macs" of an image; "file_mb", the sizes of the contestants' files; "contestants", the measurements of all
        rounds by name; "errors" of contestants that failed, which do not run again.

    Raises:
        RuntimeError: If our contestant fails, or another one computes a different network.
    """
    names = [MATRIX, case.ours, *case.peers, *([OUTSIDE] if case.outside else [])]
    measured, sizes, errors = {name: [] for name in names}, {}, {}

    def attempt(name: str, task: str) -> dict:
        found = run(name, task)
        if "error" in found:
            errors[name] = found["error"]
            if name not in case.peers:
                raise RuntimeError(f"{case.network}: {name} failed: {found['error']}")
        return found

    known = attempt(OURS, "write")
    for name in (case.ours, *case.peers):
        row = CONTESTANTS[name]
        if row.write and row.file not in (CONTESTANTS[OURS].file, *sizes):
            sizes[row.file] = attempt(name, "write").get("file_mb")
    for _ in range(rounds):
        for name in [name for name in names if name not in errors]:
            found = attempt(name, task)
            if "error" in found:
                continue
            if found.get("kernels", known["kernels"]) != known["kernels"]:
                raise RuntimeError(f"{case.network} of {name} has {found['kernels']} weights, ours {known['kernels']}.")
            measured[name].append(found)
    return {"macs": known["macs"], "file_mb": sizes, "contestants": measured, "errors": errors}


def ours_like(name: str, names: Collection[str], default: str) -> str:
    """Returns which of our contestants to compare one with: for a peer's file, our file of the same kind."""
    alike = f"{OURS}, {name.partition(', ')[2]}"
    return alike if CONTESTANTS[name].environment != "ours" and alike in names else default


def speeds(contest: dict, name: str) -> list[float]:
    """Returns the images per second of a contestant in each round; none if it failed or took no part."""
    found = [] if name in contest["errors"] else contest["contestants"].get(name, ())
    return [contest["batch"] / statistics.median(one["seconds"]) for one in found]


def limits(contest: dict) -> list[float]:
    """Returns the images per second in each round at the rate of a matrix product."""
    flop = contest["macs"] * FLOP_PER_MAC[contest["task"]]
    return [found["gflops"] * 1e9 / flop for found in contest["contestants"][MATRIX]]


def ratio(contests: Iterable[dict], first: str, second: str) -> float | None:
    """Returns the median of one contestant's speed over another's in the same round, or None if they never met."""
    pairs = [pair for one in contests for pair in zip(speeds(one, first), speeds(one, second), strict=False)]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def median(contests: Iterable[dict], name: str, key: str) -> float:
    """Returns the median over the rounds of something measured of a contestant."""
    return statistics.median(found[key] for one in contests for found in one["contestants"][name])


def title(contest: dict) -> str:
    return f"{contest['network']}, {contest['side']} × {contest['side']}, batch {contest['batch']}"


def report(contest: dict) -> str:
    """Returns a contest as Markdown."""
    rows, ours = [], contest["ours"]
    for name in (ours, *contest["peers"]):
        if found := speeds(contest, name):
            like = ours_like(name, contest["contestants"], ours)
            share = statistics.median(a / b for a, b in zip(found, limits(contest), strict=True))
            memory = f"{median([contest], name, 'memory_mb'):.0f}"
            spread = f"{digits(min(found))}–{digits(max(found))}"
            speed = digits(statistics.median(found))
            rows.append((name, speed, spread, cell(ratio([contest], like, name)), f"{share:.0%}", memory))
    header = ("", "images/s", "min–max", "ours over it", "of the limit", "memory, MB")
    text = [
        f"\n{title(contest)}: {contest['macs'] / 1e6:,.0f} million multiply-adds an image",
        f"{conditions([contest])}\n",
        table(header, rows),
        *(f"| {name} | failed: {error} |" for name, error in contest["errors"].items()),
    ]
    if contest["file_mb"]:
        sizes = (f"{name} {size:.1f}" for name, size in contest["file_mb"].items() if size)
        text.append(f"\nFiles, MB: {', '.join(sizes)}")
    return "\n".join(text)


def conditions(contests: Sequence[dict]) -> str:
    """Returns what the contests of a file were measured on, as a sentence."""
    machines = {describe(one["machine"]) for one in contests}
    rounds = collections.Counter()
    versions = {}
    for one in contests:
        rounds[title(one)] += len(one["contestants"][one["ours"]])
        for found in one["contestants"].values():
            versions |= found[0]["versions"] if found else {}
    least, most = min(rounds.values()), max(rounds.values())
    return (
        f"Measured on {' and '.join(sorted(machines))}. Rounds: {least if least == most else f'{least} to {most}'}. "
        f"Versions: {list_versions(versions)}."
    )


def draw(contests: Sequence[dict]) -> Figure:
    """Draws a panel of bars for each network, size and batch, with the range of all rounds."""
    panels = collections.defaultdict(lambda: collections.defaultdict(list))
    for one in contests:
        for name in (one["ours"], *one["peers"]):
            if found := speeds(one, name):
                panels[title(one)][name] += found
    heights = [2 + len(bars) for bars in panels.values()]
    figure = Figure(figsize=(8, 0.6 + sum(0.24 + 0.28 * height for height in heights)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, bars) in zip(axes, panels.items(), strict=True):
        middles = [statistics.median(found) for found in bars.values()]
        low = [middle - min(found) for middle, found in zip(middles, bars.values(), strict=True)]
        high = [max(found) - middle for middle, found in zip(middles, bars.values(), strict=True)]
        colours = [COLOURS[CONTESTANTS[name].environment] for name in bars]
        panel.barh(list(bars), middles, xerr=[low, high], color=colours, ecolor="black", capsize=3)
        panel.invert_yaxis()
        panel.set_title(f"{name}: images a second", loc="left", fontsize=10)
    return figure


def machine() -> dict:
    return stopwatch.machine() | {
        "threads": THREADS,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def take_threads() -> None:
    """Limits this process and its children to two processors, because frameworks start a thread for each processor."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def start(job: Job, interpreters: dict[str, Path]) -> dict:
    """Runs a job in a new process without the shell's settings for the frameworks."""
    command = [interpreters[CONTESTANTS[job.contestant].environment], Path(__file__).with_name("contestants.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    environment |= dict(CONTESTANTS[job.contestant].settings)
    command.append(json.dumps(dataclasses.asdict(job)))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"error": said[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main(description: str, script: str, cases: Sequence[Case], task: str) -> None:
    """Runs the command line of a contest.

    Args:
        description: Docstring of the script; the help shows its first line.
        script: Path of the script.
        cases: Contests to choose from.
        task: "train" or "predict".
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of make_peers.py, which also gets the models")
    parser.add_argument("networks", nargs="*", help="networks to compare; default all")
    peers = {peer: None for case in cases for peer in case.peers}
    parser.add_argument("--peers", nargs="+", choices=peers, metavar="NAME", help="; ".join(peers))
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; default %(default)s")
    for name in ("side", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, help="replaces the value of all cases, for a trial")
    add_json(parser, script)
    options = parser.parse_args()

    changes = {name: getattr(options, name) for name in ("side", "batch", "steps") if getattr(options, name)}
    cases = [
        dataclasses.replace(
            case, peers=tuple(peer for peer in case.peers if peer in (options.peers or case.peers)), **changes
        )
        for case in cases
        if case.network in (options.networks or [case.network])
    ]
    interpreters = {name: options.folder / name / "bin" / "python" for name in ("keras", "torch")}
    interpreters["ours"] = Path(sys.executable)
    needed = {interpreters[CONTESTANTS[peer].environment] for case in cases for peer in case.peers}
    if unknown := set(options.networks) - {case.network for case in cases}:
        parser.error(f"no case of {', '.join(sorted(unknown))}")
    if missing := [str(path) for path in needed if not path.exists()]:
        parser.error(f"no {', '.join(missing)}: run make_peers.py {options.folder}")

    take_threads()
    before = machine()
    print(json.dumps(before, indent=2))
    for case in cases:

        def run(name: str, task: str, case: Case = case) -> dict:
            given = {key: getattr(case, key) for key in ("network", "side", "batch", "classes", "steps")}
            measured = start(Job(contestant=name, task=task, folder=str(options.folder), **given), interpreters)
            print(f"{case.network}: {task}, {name}: {json.dumps(measured)}", file=sys.stderr, flush=True)
            return measured

        contest = dataclasses.asdict(case) | {"task": task, "machine": before}
        contest |= compete(case, options.rounds, run, task)
        print(report(contest), flush=True)
        save(options.json, replace(load(options.json, []), contest, *KEYS))
