"""What pruning costs by method, at equal routed-expert bytes, on text that was not calibrated on.

    python benchmarks/bench_methods.py                       # the bundled model, keep 0.6
    python benchmarks/bench_methods.py --model DIR --keep 0.4 --samples 64

Whole-expert removal can only keep round(keep * E) experts; every other method gets the bytes that
removal really used. KL in nats to the dense model, perplexity by domain, one run, one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import tenp_edge
from tenp_edge.calibration import calibrate
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.data import Domain, default_texts, load_tokenizer, make_domains
from tenp_edge.devices import this_machine
from tenp_edge.divergence import (
    DomainScores,
    concatenate,
    score_tokens,
    scored_positions,
    summarise,
)
from tenp_edge.forward import streaming_logits
from tenp_edge.plan import CompressionPlan
from tenp_edge.planner import PlanRequest, make_plan
from tenp_edge.source import ModelSource

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
# Multiples of 32 would give these three clearly fewer bytes than the others get.
UNIFORM = PlanRequest(method="enp", width_multiple=1)
PAPER = PlanRequest(shallow=1, deep=2, middle=1, width_multiple=1)  # and alpha = rho / 2
METHODS: dict[str, PlanRequest] = {
    "adaptive: own width per expert by predicted loss (default)": PlanRequest(method="adaptive"),
    "TENP (alpha and slope by predicted loss)": PlanRequest(),
    "TENP as published (alpha = rho/2, 1 -> 2)": PAPER,
    "ENP, uniform width": UNIFORM,
    "own width per expert, global (energy)": PlanRequest(method="free"),
    "own width per expert, per layer (energy)": PlanRequest(method="free", ranking="layer"),
    "random neurons, uniform width": replace(UNIFORM, neuron_score="random"),
    "experts removed: REAP": PlanRequest(method="drop", expert_score="reap"),
    "experts removed: EASY-EP": PlanRequest(method="drop", expert_score="easy-ep"),
    "experts removed: frequency": PlanRequest(method="drop", expert_score="frequency"),
}


def logits(source: ModelSource, domain: Domain) -> Iterator[torch.Tensor]:
    """Float32 logits of each of the domain's sequences at its scored positions and after."""
    first = scored_positions(domain.tokens.shape[1]).start
    return streaming_logits(
        source,
        domain.tokens,
        device=torch.device("cpu"),
        dtype=torch.float32,
        first_position=first,
    )


def evaluate(source: ModelSource, domain: Domain, reference: list[torch.Tensor]) -> DomainScores:
    """KL and perplexity of ``source`` on one domain, against the dense model's logits."""
    first = scored_positions(domain.tokens.shape[1]).start
    scores = [
        score_tokens(dense[:-1], found[:-1], tokens[first + 1 :])
        for dense, found, tokens in zip(
            reference, logits(source, domain), domain.tokens, strict=True
        )
    ]
    return summarise(domain.name, len(scores), concatenate(scores))


def whole_sequences(domain: Domain) -> Domain:
    """Only the sequences without padding."""
    full = domain.lengths == domain.tokens.shape[1]
    return Domain(domain.name, domain.tokens[full], domain.lengths[full])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks per domain")
    parser.add_argument("--eval-samples", type=int, default=16, help="held-out chunks per domain")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    checkpoint, tokenizer = Checkpoint(args.model), load_tokenizer(args.model)
    drawn = make_domains(
        default_texts("calibration"), tokenizer, args.samples, args.seq_len, args.seed
    )
    held_out = make_domains(
        default_texts("heldout"), tokenizer, args.eval_samples, args.seq_len, args.seed
    )
    domains = [whole_sequences(domain) for domain in held_out]
    with tempfile.TemporaryDirectory() as work:
        statistics = calibrate(checkpoint, drawn, Path(work), dtype="float32", seed=args.seed)
        removal = PlanRequest(method="drop", keep=args.keep, seed=args.seed)
        keep = make_plan(checkpoint, this_machine(), removal, statistics).keep_ratio
        dense = ModelSource(checkpoint)
        references = [list(logits(dense, domain)) for domain in domains]
        print(f"keep {keep:.4f} (asked for {args.keep:g}), seed {args.seed}\n")
        names = [f"{domain.name} {what}" for domain in domains for what in ("KL", "ppl")]
        print("| method | kept | R_active |", " | ".join(names), "|")
        print("|---|---|---|" + "---|" * len(names))
        for name, request in METHODS.items():
            share = keep / 2 if request is PAPER else None
            sized = replace(request, keep=keep, whole_share=share, seed=args.seed)
            plan = make_plan(checkpoint, this_machine(), sized, statistics)
            print(row(name, plan, checkpoint, domains, references), flush=True)
        dense_row = [evaluate(dense, d, r) for d, r in zip(domains, references, strict=True)]
        cells = (f"0 | {scores.reference_perplexity:.2f}" for scores in dense_row)
        print("| dense model | 1.000 | 100.0 % |", " | ".join(cells), "|")


def row(
    name: str,
    plan: CompressionPlan,
    checkpoint: Checkpoint,
    domains: list[Domain],
    references: list[list[torch.Tensor]],
) -> str:
    """One line of the table."""
    source = ModelSource(checkpoint, plan)
    scores = [evaluate(source, d, r) for d, r in zip(domains, references, strict=True)]
    cells = (f"{s.mean_kl:.4f} | {s.candidate_perplexity:.2f}" for s in scores)
    active = plan.recipe["active_ratio"]
    shown = "" if active is None else f"{100 * active:.1f} %"
    return f"| {name} | {plan.keep_ratio:.3f} | {shown} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
