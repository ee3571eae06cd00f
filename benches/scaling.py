#!/usr/bin/env python3
"""How the cost of a training step grows with T, B, H and L, each doubled six times, and between neighbouring sizes.

    python3 benches/scaling.py MNEMON [--device software] [--svg scaling.svg]

MNEMON is the built command. Writes a table in Markdown to standard output and a plot; needs Python's standard library alone.
The exponent is the slope of log time over log size, by least squares: over all sizes, and over the last four, where what does
not depend on the size has become small. Exits with 1 where neighbouring sizes differ by more than 1.3 times.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile

BASE = dict(T=32, B=8, I=32, H=64, layers=1)
FIRST = dict(T=16, B=1, H=16, layers=1)
NEIGHBOURS = [dict(H=h) for h in (127, 128, 129)] + [dict(B=b) for b in (63, 64, 65)]
CLIFF = 1.3


def slope(xs, ys):
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def plot(series, path):
    """Time over size, both by powers of two, one line a dimension."""
    width, height, left, top = 640, 420, 70, 20
    colours = dict(T="#1b6ca8", B="#c8553d", H="#2e7d32", layers="#6a4c93")
    times = [t for rows in series.values() for _, t, _ in rows]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    x = lambda step: left + step * (width - left - 110) / 6
    y = lambda t: top + (high - math.log10(t)) * (height - top - 50) / (high - low)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="white"/>']
    for power in range(low, high + 1):
        out.append(f'<line x1="{left}" x2="{width - 110}" y1="{y(10**power):.1f}" y2="{y(10**power):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y(10**power) + 4:.1f}" text-anchor="end">{10**power:g} ms</text>')
    for step in range(7):
        out.append(f'<text x="{x(step):.1f}" y="{height - 28}" text-anchor="middle">×{2**step}</text>')
    out.append(f'<text x="{(left + width - 110) / 2}" y="{height - 8}" text-anchor="middle">size over the first</text>')
    ends = sorted(((y(rows[-1][1]), name) for name, rows in series.items()))
    at = -math.inf
    for end, name in ends:
        at = max(end, at + 16)
        rows = series[name]
        points = " ".join(f"{x(i):.1f},{y(t):.1f}" for i, (_, t, _) in enumerate(rows))
        label = f"{'L' if name == 'layers' else name} = {rows[0][0]}…{rows[-1][0]}"
        out.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        out.append(f'<text x="{width - 102}" y="{at + 4:.1f}" fill="{colours[name]}">{label}</text>')
    with open(path, "w") as f:
        f.write("\n".join(out + ["</svg>\n"]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mnemon")
    p.add_argument("--device", default="software")
    p.add_argument("--svg", default="scaling.svg")
    a = p.parse_args()
    configs, of = [], {}
    for name, first in FIRST.items():
        for step in range(7):
            c = dict(BASE, **{name: first * 2**step})
            configs.append(dict(c, name=f"{name}={c[name]}"))
    for change in NEIGHBOURS:
        (name, value), = change.items()
        c = dict(BASE, **change)
        configs.append(dict(c, name=f"next {name}={value}"))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(configs, f)
        f.flush()
        run = [a.mnemon, "bench", "--configs", f.name, "--modes", "train", "--device", a.device]
        for line in subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines():
            line = json.loads(line)
            of[line["config"]] = line
    series = {}
    print("| dimension | sizes | ms a step | MB held | exponent of time | of its last four | of memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, first in FIRST.items():
        sizes = [first * 2**i for i in range(7)]
        rows = [(s, of[f"{name}={s}"]["ms"], of[f"{name}={s}"]["memory_bytes"]) for s in sizes]
        series[name] = rows
        times, bytes_ = [r[1] for r in rows], [r[2] for r in rows]
        cells = [", ".join(map(str, sizes)), ", ".join(f"{t:.2f}" for t in times), ", ".join(f"{b / 1e6:.1f}" for b in bytes_),
                 f"{slope(sizes, times):.2f}", f"{slope(sizes[3:], times[3:]):.2f}", f"{slope(sizes, bytes_):.2f}"]
        print(f"| {'L' if name == 'layers' else name} | {' | '.join(cells)} |")
    worst = 1.0
    for name in ("H", "B"):
        near = [c["name"] for c in configs if c["name"].startswith(f"next {name}")]
        times = [of[n]["min_ms"] for n in near]
        print(f"\n{', '.join(n[5:] for n in near)}: {', '.join(f'{t:.2f}' for t in times)} ms (least)")
        worst = max([worst] + [max(x, y) / min(x, y) for x, y in zip(times, times[1:])])
    print(f"\nlargest step between neighbours: {worst:.2f} times")
    plot(series, a.svg)
    sys.exit(worst > CLIFF)


main()
