"""Seconds an epoch of PyTorch on the batches that `benches/ragged.rs --batches FOLDER` wrote: packed, and padded.

    python benches/ragged_torch.py FOLDER/*.json

The same work: embedding of 128, LSTM of 256, the last h to two classes, plain gradient descent. JSON lines; the time is
the median of three epochs after one that is not counted.
"""

import json
import os
import statistics
import sys
import time

import torch
from torch.nn.utils.rnn import pack_padded_sequence

VOCABULARY, EMBEDDING, HIDDEN = 10_000, 128, 256


def epoch(layers, optimizer, batches, packed):
    table, lstm, head = layers
    begin = time.perf_counter()
    for lengths in batches:
        longest = max(lengths)
        tokens = torch.arange(longest * len(lengths)).reshape(longest, -1) * 7919 % VOCABULARY
        x = table(tokens)
        if packed:
            x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        h = lstm(x)[1][0][0]
        loss = torch.nn.functional.cross_entropy(head(h), torch.arange(len(lengths)) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - begin


def main():
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("MNEMON_THREADS", os.cpu_count())))
    for file in sys.argv[1:]:
        batches = [[max(1, n) for n in batch] for batch in json.load(open(file))]
        data, kind = os.path.basename(file).split(".")[:2]
        for packed in (True, False):
            layers = torch.nn.Embedding(VOCABULARY, EMBEDDING), torch.nn.LSTM(EMBEDDING, HIDDEN), torch.nn.Linear(HIDDEN, 2)
            optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)
            times = [epoch(layers, optimizer, batches, packed) for _ in range(4)][1:]
            print(json.dumps({"peer": f"torch {torch.__version__}", "data": data, "batching": kind, "padded": not packed,
                              "seconds": statistics.median(times)}), flush=True)


if __name__ == "__main__":
    main()
