//! `mnemon convert` as a user meets it: each kind of file to each other, what is refused, and what becomes of files.

use mnemon::config::Cell;
use mnemon::io::{self, Imported};
use mnemon::nn::{Dense, Embedding, Input, Layer, Lstm, Network};
use mnemon::params::Tensor;
use mnemon::train::{Named, model_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn mnemon(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnemon"));
    for variable in ["MNEMON_GPU_LIMITS", "MNEMON_THREADS", "MNEMON_MEMORY", "MNEMON_LOG"] {
        command.env_remove(variable);
    }
    command.env("MNEMON_DEVICE", "cpu").args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A new empty folder.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("convert").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A file of tests/data.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Converts what can be; gives what the command says.
#[track_caller]
fn convert(from: &Path, to: &Path, more: &[&str]) -> String {
    let output = mnemon(&[&["convert", text(from), text(to)][..], more].concat());
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{from:?} to {to:?}: {err}");
    assert!(to.is_file(), "{out}");
    out
}

/// Converts what must fail with this exit code and `wanted` on standard error, and say nothing else.
#[track_caller]
fn refused(from: &Path, to: &Path, more: &[&str], code: i32, wanted: &str) {
    let output = mnemon(&[&["convert", text(from), text(to)][..], more].concat());
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{from:?} to {to:?}: {err}");
    assert!(err.contains(wanted) && !err.contains("panicked"), "expected {wanted:?} in: {err}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
}

/// Whether `model` gives the `count` outputs that a file expects of it.
#[track_caller]
fn compare(model: &Path, expected: &Path, count: usize) {
    let output = mnemon(&["compare", text(model), text(expected)]);
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let said = format!("{out}{err}");
    assert_eq!(output.status.code(), Some(0), "{model:?}: {said}");
    assert!(said.contains(&format!("{count} passed, 0 failed")), "{model:?}: {said}");
}

fn parameters(path: &Path) -> Named {
    io::read_model(path, None).unwrap_or_else(|e| panic!("{e}")).parameters
}

fn map(tensor: &Tensor, function: impl Fn(f32) -> f32) -> Tensor {
    Tensor::new(tensor.shape(), tensor.f32s().unwrap().iter().map(|&x| function(x)).collect()).unwrap()
}

/// Writes a model file of layers in a row, each parameter zero.
fn own(path: &Path, input: Input, layers: &[Layer]) {
    let network = Network::chain(input, None, layers).unwrap();
    let zeros = network.parameters().unwrap().into_iter().map(|spec| (spec.name, Tensor::zeros(&spec.shape)));
    let imported = Imported::new("own", network, zeros.collect(), BTreeMap::new());
    io::save(path, &model_file(&imported).unwrap()).unwrap();
}

#[test]
fn models_of_keras_come_back() {
    let folder = folder("keras");
    let (own, back) = (folder.join("own.safetensors"), folder.join("back.keras"));
    for name in ["average", "tagger", "translate", "shapes"] {
        let (from, expected) = (data(&format!("models/{name}.keras")), data(&format!("models/{name}.safetensors")));
        convert(&from, &own, &[]);
        convert(&own, &back, &[]);
        for path in [&own, &back] {
            assert_eq!(parameters(path), parameters(&from), "{name}");
            compare(path, &expected, 1);
        }
    }
    let (from, expected) = (data("legacy/sequential2.h5"), data("legacy/sequential2.safetensors"));
    convert(&from, &own, &[]);
    convert(&from, &back, &["--format", "keras"]);
    assert_eq!(parameters(&own), parameters(&back));
    compare(&back, &expected, 1);
    let graph = folder.join("graph.onnx");
    convert(&data("models/pooled.keras"), &graph, &[]);
    compare(&graph, &data("models/pooled.safetensors"), 1);
}

/// The weights of a model that was changed here take the place of those of Keras's file.
#[test]
fn weights_of_keras_are_those_of_the_model() {
    let folder = folder("weights");
    let from = data("models/translate.keras");
    let [own, weights, back] = ["own.safetensors", "new.weights.h5", "back.safetensors"].map(|n| folder.join(n));
    let mut imported = io::read_model(&from, None).unwrap();
    imported.parameters.values_mut().for_each(|tensor| *tensor = map(tensor, |x| 2.0 * x + 1.0));
    io::save(&own, &model_file(&imported).unwrap()).unwrap();
    convert(&own, &weights, &[]);
    convert(&from, &back, &["--weights", text(&weights)]);
    assert_eq!(parameters(&back), imported.parameters);
    assert_ne!(parameters(&back), parameters(&from));
    let other = folder.join("weights of another name");
    convert(&own, &other, &["--format", "keras-weights"]);
    assert!(std::fs::read(&other).unwrap() == std::fs::read(&weights).unwrap());
}

/// What a file of PyTorch's expects, without gradients, which go by names that only its state dict has.
fn without_gradients(name: &str, folder: &Path) -> PathBuf {
    let mut all = io::read_tensors(&data(&format!("models/{name}.safetensors"))).unwrap();
    all.retain(|name, _| !name.starts_with("grad."));
    let path = folder.join(format!("{name}.expected.safetensors"));
    io::write_tensors(&path, all).unwrap();
    path
}

#[test]
fn state_dicts_come_back_bit_for_bit() {
    let folder = folder("pytorch");
    let state = folder.join("state.safetensors");
    // The layers of one module are apart here, and together again there, under the names that they have here.
    let renamed = |(name, tensor): (String, Tensor)| {
        let names = [("wte.", "embedding."), ("rnn.", "lstm."), ("head.", "dense.")];
        (names.into_iter().fold(name, |name, (theirs, ours)| name.replacen(theirs, ours, 1)), tensor)
    };
    let wanted: Named =
        io::read_tensors(&data("models/deep.state.safetensors")).unwrap().into_iter().map(renamed).collect();
    assert!(wanted.contains_key("lstm.weight_hh_l2"), "{:?}", wanted.keys());
    for between in ["own.safetensors", "graph.onnx", "model.keras", "model.h5"] {
        let between = folder.join(between);
        convert(&data("models/deep.pt"), &between, &[]);
        convert(&between, &state, &["--format", "pytorch"]);
        assert_eq!(io::read_tensors(&state).unwrap(), wanted, "{between:?}");
        let zip = folder.join("state.pt");
        convert(&between, &zip, &[]);
        assert_eq!(io::pytorch::read_checkpoint(&zip).unwrap(), wanted, "{between:?}");
    }
    compare(&folder.join("own.safetensors"), &without_gradients("deep", &folder), 5);

    for between in ["tied.safetensors", "tied.onnx"] {
        let between = folder.join(between);
        convert(&data("models/tied.pt"), &between, &[]);
        compare(&between, &without_gradients("tied", &folder), 5);
        convert(&between, &state, &["--format", "pytorch"]);
        let all = io::read_tensors(&state).unwrap();
        assert_eq!(all["dense.weight"], all["embedding.weight"]);
        assert_eq!(all.len(), 7, "{:?}", all.keys());
    }
}

#[test]
fn graphs_of_onnx_come_back() {
    let folder = folder("onnx");
    let (own, graph, model) = (folder.join("own.safetensors"), folder.join("graph.onnx"), folder.join("model.keras"));
    for name in ["lm_logp.dy_dyn", "convpool.dy"] {
        let (from, expected) = (data(&format!("onnx/{name}.onnx")), data(&format!("onnx/{name}.safetensors")));
        convert(&from, &own, &[]);
        convert(&own, &graph, &[]);
        for path in [&own, &graph] {
            assert_eq!(parameters(path), parameters(&from), "{name}");
            compare(path, &expected, 1);
        }
        convert(&graph, &model, &[]);
        let (ours, theirs) = (parameters(&own), parameters(&model));
        for (name, tensor) in &theirs {
            let values = ours[name].f32s().unwrap();
            // Keras has one bias, the sum of the two.
            let second = ours.get(&name.replace("bias_ih", "bias_hh")).filter(|_| name.contains("bias_ih"));
            let wanted: Vec<f32> = match second {
                Some(second) => values.iter().zip(second.f32s().unwrap()).map(|(a, b)| a + b).collect(),
                None => values.to_vec(),
            };
            assert_eq!(tensor.f32s().unwrap(), wanted, "{name}");
        }
        assert!(theirs.len() > 5, "{theirs:?}");
    }
}

#[test]
fn what_is_said_names_each_parameter_here_and_there() {
    let folder = folder("said");
    let (from, to) = (data("models/translate.keras"), folder.join("to.safetensors"));
    let out = convert(&from, &to, &[]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], format!("{}: functional_5", from.display()));
    assert!(lines.contains(&"  encoder                  lstm"), "{out}");
    assert!(lines.contains(&"  decoder.weight_hh_l0 [24, 6] from layers/lstm_1/cell/vars/1"), "{out}");
    assert!(lines.contains(&"  dense_3.bias [4] from layers/dense/vars/1"), "{out}");
    assert_eq!(*lines.last().unwrap(), format!("{}: 8 tensors, 532 values", to.display()));

    let out = convert(&data("models/deep.pt"), &to, &[]);
    assert!(out.contains("  lstm_2.weight_ih_l0 [20, 5] from rnn.weight_ih_l2\n"), "{out}");
    assert!(out.contains("  embedding.weight [15, 4] from wte.weight\n"), "{out}");
    let out = convert(&data("onnx/cls_last.ts.onnx"), &folder.join("last.safetensors"), &[]);
    assert!(!out.contains("input "), "{out}");
    let out = convert(&data("onnx/act_bi.onnx"), &folder.join("act.safetensors"), &[]);
    assert!(out.contains("  input X [T, B, ") && out.contains(" as [B, T, "), "{out}");
    convert(&data("models/deep.pt"), &to, &[]);
    // Where both names are one, it is said once.
    let out = convert(&to, &folder.join("again.safetensors"), &[]);
    assert!(out.contains("  lstm_2.weight_ih_l0 [20, 5]\n") && !out.contains(" from "), "{out}");
    // Keras's one bias is PyTorch's first of two.
    let out = convert(&from, &to, &["--format", "pytorch"]);
    assert!(out.ends_with(": 10 tensors, 580 values\n"), "{out}");
}

#[test]
fn what_a_format_cannot_say_is_refused_by_name_and_nothing_is_written() {
    let folder = folder("refused");
    let file = |name: &str| folder.join(name);
    let peepholes = Lstm::new(5).return_sequences(true).cell(Cell { peepholes: true, ..Cell::default() }).name("odd");
    let layers: [Layer; 3] = [Embedding::new(9, 5).into(), peepholes.into(), Dense::new(9).into()];
    own(&file("own.safetensors"), Input::Tokens, &layers);
    let (from, pytorch) = (file("own.safetensors"), ["--format", "pytorch"]);
    refused(&from, &file("to.keras"), &[], 2, "odd: Keras's LSTM has no peepholes");
    refused(&from, &file("to.weights.h5"), &[], 2, "odd: Keras's LSTM has no peepholes");
    refused(&from, &file("to.safetensors"), &pytorch, 2, "odd: PyTorch's nn.LSTM has no peepholes");
    refused(&data("models/tied.pt"), &file("to.keras"), &[], 2, "dense: Keras has no layer whose weights are those");
    refused(&data("models/average.keras"), &file("to.safetensors"), &pytorch, 2, "bidirectional: PyTorch's nn.LSTM");
    refused(&data("models/gru.keras"), &file("to.onnx"), &[], 2, "gru: the layer GRU is not supported");
    refused(&data("onnx/forward_0_inputs.onnx"), &file("to.keras"), &[], 2, "takes weights from its input `W`");
    refused(&data("onnx/tag.dy_dyn.onnx"), &file("to.keras"), &[], 2, "the number of the largest feature");
    refused(&data("onnx/lens_const.onnx"), &file("to.keras"), &[], 2, "it gives `sequence_lens` for each of them");

    let square = data("models/square.pt");
    refused(&square, &file("to.onnx"), &[], 2, "`a` may be either");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["own.safetensors"], "nothing was written");
    std::fs::write(file("square.json"), r#"{"embedding": "a", "lstm": "b", "linear": "c"}"#).unwrap();
    let out = convert(&square, &file("to.onnx"), &["--config", text(&file("square.json"))]);
    assert!(out.contains("  dense.weight [8, 8] from c.weight\n"), "{out}");
}

#[test]
fn what_cannot_be_read_or_written_is_told_from_what_cannot_be_said() {
    let folder = folder("files");
    let (from, to) = (data("models/average.keras"), folder.join("to.onnx"));
    refused(&folder.join("none.keras"), &to, &[], 1, "none.keras: cannot open");
    refused(&data("models/cases.json"), &to, &[], 1, "cases.json");
    refused(&from, &folder.join("no/to.onnx"), &[], 1, "to.onnx: cannot write");
    refused(
        &from,
        &to,
        &["--format", "abacus"],
        2,
        "possible values: mnemon, pytorch, pytorch-zip, keras, keras-hdf5, keras-weights, onnx",
    );
    refused(&from, &folder.join("to.pb"), &[], 2, "expected a name that ends in .safetensors, .pt, .keras");
    refused(&from, &folder.join("to"), &[], 2, "expected a name that ends in .safetensors");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    // A format needs no name.
    convert(&from, &folder.join("to"), &["--format", "mnemon"]);
    assert_eq!(parameters(&folder.join("to")), parameters(&from));
}

#[test]
fn a_file_stays_whole_until_another_is_in_its_place() {
    let folder = folder("whole");
    let files = || std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let to = folder.join("model.keras");
    std::fs::write(&to, "mine").unwrap();
    refused(&data("models/tied.pt"), &to, &[], 2, "dense: Keras has no layer");
    refused(&folder.join("none.pt"), &to, &[], 1, "cannot open");
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");
    convert(&data("models/average.keras"), &to, &[]);
    assert_eq!(parameters(&to), parameters(&data("models/average.keras")));
    assert_eq!(files(), ["model.keras"], "no temporary file stays");

    // Large tensors are read from the file itself, in whose place the new one comes.
    std::fs::remove_file(&to).unwrap();
    let to = folder.join("model.safetensors");
    own(&to, Input::Features(3), &[Lstm::new(96).name("wide").into()]);
    let mut changed = io::read_model(&to, None).unwrap();
    changed.parameters.values_mut().for_each(|tensor| *tensor = map(tensor, |_| 0.25));
    io::save(&to, &model_file(&changed).unwrap()).unwrap();
    convert(&to, &to, &["--format", "pytorch"]);
    let all = io::read_tensors(&to).unwrap();
    let (got, wanted) = (&all["wide.weight_hh_l0"], &changed.parameters["wide.weight_hh_l0"]);
    assert!(got.len() > 64 * 1024 / 4 && got == wanted, "{:?}", got.shape());
    assert_eq!(all["wide.bias_hh_l0"], Tensor::zeros(&[4 * 96]));
    assert_eq!(files(), ["model.safetensors"]);
}
