"""Microseconds of one step of one stream with ONNX Runtime on the CPU: the model of `benches/step.rs`.

    python benches/step_onnxruntime.py [THREADS [SIZE [STREAMS]]]

Two ways of calling it: `run` with arrays, as a user writes it, and with inputs and outputs bound once, which leaves out what
Python and copies cost. The call without a layer, which does nothing, is timed as well. With STREAMS also a call for a step of
one of so many streams at random, each with an input and states of its own. JSON lines.
"""

import json
import sys
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE, STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 128, 20_000


def model(layer):
    rng = np.random.default_rng(0)
    shapes = {"x": [1, 1, SIZE], "h": [1, 1, SIZE], "c": [1, 1, SIZE]}
    outputs = {"y": [1, 1, 1, SIZE], "h_n": [1, 1, SIZE], "c_n": [1, 1, SIZE]}
    info = lambda named: [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in named.items()]
    if layer:
        sizes = {"W": (1, 4 * SIZE, SIZE), "R": (1, 4 * SIZE, SIZE), "B": (1, 8 * SIZE)}
        values = {n: rng.uniform(-1, 1, s).astype(np.float32) / SIZE**0.5 for n, s in sizes.items()}
        nodes = [helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], list(outputs), hidden_size=SIZE)]
    else:
        values = {"axis": np.array([0])}
        nodes = [
            helper.make_node("Unsqueeze", ["x", "axis"], ["y"]),
            helper.make_node("Identity", ["h"], ["h_n"]),
            helper.make_node("Identity", ["c"], ["c_n"]),
        ]
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "step", info(shapes), info(outputs), weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def report(call, what, threads):
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    times = times[STEPS // 10 :]
    median, p99 = np.percentile(times, [50, 99])
    line = {"peer": "onnxruntime", "version": onnxruntime.__version__, "threads": threads, "call": what}
    mean = sum(times) / len(times)
    print(json.dumps(line | {"mean_us": round(mean, 2), "median_us": round(median, 2), "p99_us": round(p99, 2)}), flush=True)


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    streams = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    for layer, suffix in ((True, ""), (False, ", no layer")):
        session = onnxruntime.InferenceSession(model(layer), options, providers=["CPUExecutionProvider"])
        now = {name: np.zeros((1, 1, SIZE), np.float32) for name in "xhc"}

        def run():
            y, now["h"], now["c"] = session.run(None, now)
            now["x"] = y[0]

        report(run, "run" + suffix, threads)
        if streams > 0 and layer:
            rng = np.random.default_rng(1)
            all_streams = [{n: rng.normal(size=(1, 1, SIZE)).astype(np.float32) for n in "xhc"} for _ in range(streams)]
            order = iter(rng.integers(streams, size=STEPS).tolist())

            def run_one():
                stream = all_streams[next(order)]
                _, stream["h"], stream["c"] = session.run(None, stream)

            report(run_one, f"run, {streams} streams", threads)
        value = lambda *shape: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        x, y = value(1, 1, SIZE), value(1, 1, 1, SIZE)
        # States change places at each step.
        states = [[value(1, 1, SIZE) for _ in "hc"] for _ in range(2)]
        bound = []
        for before, after in ((0, 1), (1, 0)):
            binding = session.io_binding()
            binding.bind_ortvalue_output("y", y)
            binding.bind_ortvalue_input("x", x)
            for name, old, new in zip("hc", states[before], states[after]):
                binding.bind_ortvalue_input(name, old)
                binding.bind_ortvalue_output(name + "_n", new)
            bound.append(binding)

        def run_bound():
            session.run_with_iobinding(bound[0])
            bound.reverse()

        report(run_bound, "bound" + suffix, threads)


main()
