#!/usr/bin/env python3
"""Ablation and sensitivity of the detectors, over the worlds of a labelled traffic generator, as SVG.

  plots.py --binary target/release/dwarpal --scorer DIR_OF_SCORE_PY --out docs/detection WORLD...

Each point is a whole replay of every world, scored. Needs matplotlib.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt    # noqa: E402

DETECTORS = ("misses", "identifiers", "novelty", "volume", "interest", "key-use", "heat")
SENSITIVITY = {"contain": (8, 10, 12, 14, 18), "contain-partner": (12, 14, 16, 20, 24), "noise": (0.5, 1, 1.5, 2, 3),
               "half-life": (10800, 21600, 43200, 86400), "volume-large": (1, 1.5, 2, 3), "peak-margin": (1.1, 1.3, 1.6, 2)}


def measure(options, worlds, switches):
    """Share of records exposed, false denials a million, false alerts a partner-day, share of campaigns detected."""
    sys.path.insert(0, options.scorer)
    import score    # the generator's own
    exposed = attempted = denied = honest = found = campaigns = alerts = 0
    for world in worlds:
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([options.binary, "replay", "--world", world, "--out", out, *switches], check=True)
            labels, partners, events = score.load(world)
            deny, reason = score.load_verdicts(f"{out}/verdicts.jsonl", len(events))
            told = list(score.lines(f"{out}/alerts.jsonl"))
            over = score.score(labels, partners, events, deny, reason, told)["overall"]
        exposed += over["records_exposed"]
        attempted += over["records_attempted"]
        denied += over["false_denials"]
        honest += over["benign_events"]
        found += over["campaigns_detected"]
        campaigns += over["campaigns"]
        alerts += over["false_alerts_per_partner_day"] / len(worlds)
    return {"exposed": exposed / max(1, attempted), "denied": denied / max(1, honest) * 1e6,
            "alerts": alerts, "detected": found / max(1, campaigns)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("worlds", nargs="+")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)

    results = {"all": measure(options, options.worlds, [])}
    for detector in DETECTORS:
        results[f"without {detector}"] = measure(options, options.worlds, ["--without", detector])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True)
    names = list(results)[::-1]
    left.barh(names, [100 * results[name]["exposed"] for name in names])
    left.set_xlabel("records exposed, % of those attempted")
    right.barh(names, [results[name]["denied"] for name in names])
    right.set_xlabel("honest lookups refused, a million")
    figure.tight_layout()
    figure.savefig(f"{options.out}/ablation.svg")

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5))
    for (name, values), axis in zip(SENSITIVITY.items(), axes.flat):
        points = [measure(options, options.worlds, ["--set", f"{name}={value}"]) for value in values]
        results.update({f"{name}={value}": point for value, point in zip(values, points)})
        axis.plot(values, [100 * point["exposed"] for point in points], "o-", color="tab:red")
        axis.set_xlabel(name)
        axis.set_ylabel("exposed, %", color="tab:red")
        other = axis.twinx()
        other.plot(values, [point["denied"] for point in points], "s--", color="tab:blue")
        other.set_ylabel("refused, a million", color="tab:blue")
    figure.tight_layout()
    figure.savefig(f"{options.out}/sensitivity.svg")

    figure, axis = plt.subplots(figsize=(6, 4))
    for name, point in results.items():
        axis.plot(point["denied"], 100 * point["exposed"], "o", color="black" if name == "all" else "tab:gray")
    axis.set_xscale("symlog")
    axis.set_xlabel("honest lookups refused, a million")
    axis.set_ylabel("records exposed, %")
    figure.tight_layout()
    figure.savefig(f"{options.out}/trade-off.svg")
    with open(f"{options.out}/results.json", "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
