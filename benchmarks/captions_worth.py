"""What captions are worth: the same recipe with four sources of captions, scored by prompts of none of them.

Usage: python benchmarks/captions_worth.py --corpus DIR [--real DIR] [--seeds 3] [--steps 120] [--work DIR]

The sources: the released corpus (DIR, TISSUE/BIOMARKER.txt), our templates by staining band, our templates
without it, and rewordings. The rewordings pass through the whole caption workflow: seeds drafted from the
training patches and accepted as drafted, reworded by a scripted model behind an HTTP endpoint on loopback,
validated, and accepted by sampling, here unread. Each model is `tiny`, trained on the MIHIC twin as in
captions_effect.py, and scored zero-shot on twins and on the real BCData images (--real), which choose
nothing. The work stops where a prompt is, word by word, a caption of any source.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from captions_effect import BATCH, REAL, grid, train

from his2lip.captioning import (
    Acceptance,
    Endpoint,
    Judgement,
    Source,
    batches,
    captions,
    draft_project,
    plan_rewordings,
    reword_seeds,
    to_bank,
)
from his2lip.cli.data import prepare_dataset
from his2lip.data.captions import CaptionBank, plain
from his2lip.data.shards import INFO, open_shards
from his2lip.evaluation.results import CellResult
from his2lip.models import load_model
from his2lip.synthetic import write_twin

RESULT = Path(__file__).parent / "results/captions_worth.json"
TWINS = ("mihic", "bcdata")
VARIANTS = 8
# How the scripted model says a drafted sentence, `{Place} stained for {marker}: {finding}.`, in other words.
FORMS = (
    "In {place}, the {marker} stain shows that {finding}.",
    "{Finding} in {place} on {marker} immunohistochemistry.",
    "{marker} in {place}: {finding}.",
    "On this patch of {place} with {marker} IHC, {finding}.",
    "With an antibody against {marker}, {finding} in {place}.",
    "This {marker} preparation of {place} is one where {finding}.",
    "{Place}, {marker} immunohistochemistry; {finding}.",
    "A field of {place} after staining for {marker}, in which {finding}.",
    "As to {marker} in this {place}, {finding}.",
    "{Finding}, as {marker} immunohistochemistry of {place} shows.",
)


def main(args: argparse.Namespace) -> None:
    """Trains and scores all models, writes the result and prints the table."""
    from speed._pairs import machine

    shards = {name: str(args.work / "shards" / name) for name in TWINS}
    for name, place in shards.items():
        if not Path(place, INFO).exists():
            write_twin(name, place)
    banks = {"released": args.work / "released.json", "reworded": args.work / "reworded.json"}
    CaptionBank.from_folder(args.corpus, missing="template")[0].save(banks["released"])
    counted = args.work / "workflow.json"
    if not banks["reworded"].exists():
        counted.write_text(json.dumps(reworded(args.work, shards["mihic"], banks["reworded"])))
    workflow = json.loads(counted.read_text())
    arms: dict[str, dict[str, object]] = {
        "released": {"data.captions": str(banks["released"]), "data.missing": "template"},
        "templates, by band": {"data.staining": "follow"},
        "templates, without": {"data.staining": "ignore"},
        "reworded": {"data.captions": str(banks["reworded"]), "data.missing": "template"},
    }
    sources = [CaptionBank.load(path) for path in banks.values()]
    sources += [CaptionBank.templates("follow"), CaptionBank.templates("ignore")]
    lines = itertools.chain.from_iterable(
        [*bank.distinct(), *itertools.chain(*bank.held_out.values())] for bank in sources
    )
    unwanted = frozenset(plain(line) for line in lines)
    models = [
        {
            "name": f"{arm}/{seed}",
            "path": train(args.work / "models", arm, seed, shards["mihic"], args.steps, how),
        }
        for seed in range(args.seeds)
        for arm, how in arms.items()
    ]
    cells = grid(args, "worth-twins", models, shards, unwanted)
    if args.real is not None:
        real = str(args.work / "shards/real/bcdata")
        if not Path(real, INFO).exists():
            prepare_dataset("bcdata", args.real, real)
        of_real = grid(args, "worth-real", models, {"bcdata": real}, unwanted)
        cells |= {(m, REAL, p): cell for (m, _, p), cell in of_real.items()}
    rows = summary(cells, list(arms))
    result = {
        "recipe": "train/demo_train.yaml", "batch_size": BATCH, "steps": args.steps, "seeds": args.seeds,
        "captions_compared": len(unwanted), "workflow": workflow, "machine": machine(1), "cells": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows, list(arms)))


def reworded(work: Path, shards: str, out: Path) -> dict[str, Any]:
    """A caption bank by the whole workflow, every draft and every sampled line accepted; what it counted."""
    model = load_model("tiny")
    project = draft_project(
        work / "project", [Source(shards=open_shards(shards))], model, cache=str(work / "cache")
    ).project
    for key in project.keys:
        project.submit("scripted", key.id, Judgement("accept"), version=0)
    with scripted_endpoint() as url:
        endpoint = Endpoint(url=url, model="scripted", key="none", per_minute=1e6)
        report = reword_seeds(project, plan_rewordings(project, VARIANTS), endpoint, model.tokenizer)
    for batch in batches(project.refresh(), project.seed, Acceptance()):
        for item in batch.sample:
            project.submit("scripted", item, Judgement("accept"), version=0)
    state = project.refresh()
    standing = captions(state, batches(state, project.seed, Acceptance()))
    to_bank(standing.lines).save(out)
    told = {"keys": len(project.keys), "passed": report.passed, "refused": dict(report.refused)}
    return told | {"lines": len(standing.lines)}


@contextmanager
def scripted_endpoint() -> Iterator[str]:
    """A model on loopback that rewords drafted sentences by `FORMS`; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = json.loads(tree["messages"][-1]["content"])
            start, _, finding = asked["caption"].removesuffix(".").partition(": ")
            place, _, marker = start.partition(" stained for ")
            named = {"place": place[:1].lower() + place[1:], "Place": place, "marker": marker}
            named |= {"finding": finding, "Finding": finding[:1].upper() + finding[1:]}
            lines = [form.format(**named) for form in FORMS]
            free = [line for line in lines if line not in asked["already_there"]]
            content = json.dumps({"rewordings": free[: asked["number_of_rewordings"]]})
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
            answer = {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [choice],
            }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def summary(cells: dict[tuple[str, str, str], CellResult], arms: list[str]) -> list[dict[str, Any]]:
    """By dataset and protocol: macro F1 of each seed, and its band over prompt draws (5 to 95 %)."""
    rows = []
    for dataset, protocol in dict.fromkeys((d, p) for _, d, p in cells):
        here = {m: c for (m, d, p), c in cells.items() if (d, p) == (dataset, protocol)}
        of_arm = {}
        for arm in arms:
            own = [here[m] for m in here if m.startswith(f"{arm}/")]
            of_arm[arm] = {
                "macro_f1": [c.macro_f1 for c in own],
                "prompt_band": [(c.prompt_f1_lo, c.prompt_f1_hi) for c in own],
            }
        first = next(iter(here.values()))
        rows.append(
            {
                "dataset": dataset, "protocol": protocol, "n": first.n, "generated": first.generated,
                "prompts_sha256": first.prompts_sha256, "arms": of_arm,
                "baselines": {m: c.macro_f1 for m, c in here.items() if "/" not in m},
            }
        )  # fmt: skip
    return rows


def decided_by_prompts(of_arm: dict[str, Any]) -> bool:
    """Whether the order of the best two sources is within what other prompts change.

    That is so where the difference of their means is below the mean half width of their prompt bands.
    """
    ranked = sorted(of_arm.values(), key=lambda arm: -statistics.mean(arm["macro_f1"]))[:2]
    widths = [(high - low) / 2 for arm in ranked for low, high in arm["prompt_band"] if low is not None]
    means = [statistics.mean(arm["macro_f1"]) for arm in ranked]
    return not widths or means[0] - means[1] < statistics.mean(widths)


def table(rows: list[dict[str, Any]], arms: list[str]) -> str:
    """The table of docs/captions.md: mean macro F1 over seeds, percent, and the standard deviation."""
    lines = [
        f"| dataset, protocol | n | {' | '.join(arms)} | order |",
        "| --- | ---: " + "| ---: " * len(arms) + "| --- |",
    ]
    for row in rows:
        figures = []
        for arm in arms:
            values = [100 * value for value in row["arms"][arm]["macro_f1"]]
            spread = statistics.stdev(values) if len(values) > 1 else 0
            figures.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        kind = "" if row["dataset"] == REAL else " (twin)"
        order = "prompts decide" if decided_by_prompts(row["arms"]) else "prompts do not"
        lines.append(
            f"| {row['dataset']}{kind}, {row['protocol']} | {row['n']} | {' | '.join(figures)} | {order} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--real", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--work", type=Path, default=Path("runs/captions_worth"))
    parser.add_argument("--out", type=Path, default=RESULT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(parser.parse_args())
