//! The command as a user meets it: the built binary, its exit codes, and what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SUBCOMMANDS: [&str; 12] = [
    "devices", "train", "evaluate", "generate", "plot", "classify", "summary", "run", "compare", "verify", "bench",
    "plan",
];
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models");
const CONFORMANCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/conformance");

fn mnemon(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnemon"));
    ["MNEMON_DEVICE", "MNEMON_GPU_LIMITS", "MNEMON_THREADS", "MNEMON_MEMORY", "MNEMON_LOG"].iter().for_each(|v| {
        command.env_remove(v);
    });
    command.env("RUST_BACKTRACE", "1").args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must fail with `wanted` on standard error, and no trace of a panic.
#[track_caller]
fn refused(arguments: &[&str], codes: &[i32], wanted: &[&str]) {
    let output = mnemon(arguments);
    let text = err(&output);
    assert!(codes.contains(&code(&output)), "{arguments:?}: exit code {}, {text}", code(&output));
    assert!(wanted.iter().all(|w| text.contains(w)), "{arguments:?}: expected {wanted:?} in: {text}");
    assert!(
        !text.contains("panicked") && !text.contains("RUST_BACKTRACE") && !text.contains("stack backtrace"),
        "{text}"
    );
}

/// A new empty folder.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The shipped cases with `cases.json` changed by `edit`, in a folder of their own.
fn edited(name: &str, edit: impl Fn(&mut Vec<serde_json::Value>)) -> PathBuf {
    let to = folder(name);
    for entry in std::fs::read_dir(CONFORMANCE).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    let path = to.join("cases.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(json["cases"].as_array_mut().unwrap());
    std::fs::write(&path, json.to_string()).unwrap();
    to
}

/// Overwrites the first value of `tensor` in a safetensors file.
fn corrupt(path: &Path, tensor: &str, value: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8 + header + json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

fn lines(output: &Output) -> Vec<serde_json::Value> {
    out(output).lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[test]
fn every_subcommand_has_help_with_an_example() {
    for subcommand in SUBCOMMANDS {
        let output = mnemon(&[subcommand, "--help"]);
        let (text, example) = (out(&output), format!("mnemon {subcommand}"));
        assert_eq!(code(&output), 0, "{subcommand}");
        assert!(text.contains("Example") && text.matches(&example).count() >= 2, "{subcommand}: {text}");
    }
    assert_eq!(code(&mnemon(&["--help"])), 0);
    assert!(out(&mnemon(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn unknown_arguments_are_refused() {
    for subcommand in SUBCOMMANDS {
        refused(&[subcommand, "--no-such-flag"], &[2], &["--no-such-flag"]);
    }
    refused(&["no-such-command"], &[2], &["no-such-command"]);
    refused(&[], &[2], &["Usage"]);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    for subcommand in ["verify", "bench"] {
        refused(&[subcommand, "--device", "abacus"], &[2], &["`abacus`", "gpu:SUBSTRING"]);
        refused(&[subcommand, "--device", "gpu:no such adapter"], &[1, 2], &["error: "]);
        refused(&[subcommand, "--device", "cpu", "--threads", "0"], &[2], &["threads", "got 0"]);
    }
}

#[test]
fn devices_names_the_one_that_best_takes() {
    let output = mnemon(&["devices"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).contains("cpu, ") && out(&output).contains("best takes: "), "{}", out(&output));
}

#[test]
fn verify_passes_the_shipped_cases() {
    for device in ["cpu", "reference"] {
        let output = mnemon(&["verify", CONFORMANCE, "--device", device]);
        let text = out(&output);
        assert_eq!(code(&output), 0, "{text}{}", err(&output));
        assert!(text.contains("5 passed, 0 failed, 0 not run"), "{text}");
        assert!(text.contains("grad.weight_hh_l1") && text.contains("grad.weight_hh_l0_reverse"), "{text}");
        let output = mnemon(&["verify", CONFORMANCE, "--device", device, "--only", "len*", "--json"]);
        let all = lines(&output);
        assert_eq!((code(&output), all.len()), (0, 1));
        let keys: Vec<&String> = all[0].as_object().unwrap().keys().collect();
        let mut wanted =
            ["case", "device", "adapter", "passed", "status", "worst_tensor", "worst_error", "tolerance", "error"];
        wanted.sort_unstable();
        assert_eq!(keys, wanted, "serde_json sorts keys");
        assert_eq!(
            (&all[0]["case"], &all[0]["passed"], &all[0]["error"]),
            (&"lengths".into(), &true.into(), &serde_json::Value::Null)
        );
        assert!(all[0]["worst_error"].as_f64().unwrap() < 1e-5 && all[0]["device"] == device);
    }
}

/// Also where the processor has wider ones.
#[test]
fn all_vector_instructions_of_the_processor_agree_with_the_reference() {
    let verify = |instructions: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mnemon"));
        command.args(["verify", "--device", "cpu"]).args(arguments).env("MNEMON_SIMD", instructions);
        command.output().unwrap()
    };
    let unknown = verify("abacus", &[]);
    assert_eq!(code(&unknown), 2, "{}", err(&unknown));
    assert!(err(&unknown).contains("abacus") && err(&unknown).contains("scalar"), "{}", err(&unknown));
    let known = ["avx512", "avx2", "neon", "scalar"].into_iter().filter(|name| err(&unknown).contains(name));
    for name in known {
        for arguments in [&[CONFORMANCE][..], &[]] {
            let output = verify(name, arguments);
            assert_eq!(code(&output), 0, "{name}: {}{}", out(&output), err(&output));
        }
    }
}

#[test]
fn verify_fails_on_wrong_numbers_and_goes_on() {
    let cases = edited("wrong", |cases| cases[4]["proj_size"] = 99.into());
    corrupt(&cases.join("plain.safetensors"), "grad.h0", 3.0);
    corrupt(&cases.join("no_bias.safetensors"), "in.x", f32::NAN);
    let output = mnemon(&["verify", text(&cases), "--device", "cpu", "--json"]);
    let all = lines(&output);
    assert_eq!((code(&output), all.len()), (1, 5), "one that failed beats one that was not run");
    assert_eq!((&all[0]["status"], &all[0]["worst_tensor"]), (&"failed".into(), &"grad.h0".into()));
    assert_eq!(all[1]["status"], "passed");
    assert_eq!((&all[2]["status"], &all[2]["worst_error"]), (&"failed".into(), &serde_json::Value::Null));
    assert_eq!((&all[4]["status"], &all[4]["worst_tensor"]), (&"unsupported".into(), &serde_json::Value::Null));
}

#[test]
fn verify_says_why_a_case_cannot_be_run() {
    let cases = edited("unreadable", |cases| {
        cases.truncate(4);
        cases[0]["hidden_size"] = 6.into();
        cases[1]["file"] = "gone.safetensors".into();
        cases[2].as_object_mut().unwrap().remove("bias");
        cases[3]["unknown key"] = 1.into();
    });
    let output = mnemon(&["verify", text(&cases), "--device", "cpu", "--json"]);
    let all = lines(&output);
    assert_eq!(code(&output), 2);
    for (at, wanted) in ["tensor `", "gone.safetensors", "missing field `bias`"].iter().enumerate() {
        assert!(all[at]["error"].as_str().unwrap().contains(wanted), "{}", all[at]);
        assert_eq!(all[at]["status"], "unsupported");
    }
    assert_eq!(all[3]["status"], "passed", "unknown keys are passed over");
    refused(&["verify", "no/such/folder"], &[2], &["no/such/folder"]);
    refused(&["verify", CONFORMANCE, "--device", "cpu", "--only", "nothing*"], &[2], &["nothing*"]);
    std::fs::write(cases.join("cases.json"), "{\"cases\": [").unwrap();
    refused(&["verify", text(&cases)], &[2], &["cases.json"]);
    std::fs::write(cases.join("lengths.safetensors"), "short").unwrap();
    std::fs::copy(Path::new(CONFORMANCE).join("cases.json"), cases.join("cases.json")).unwrap();
    let output = mnemon(&["verify", text(&cases), "--device", "cpu", "--only", "lengths"]);
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("lengths.safetensors"), "{}", out(&output));
}

#[test]
fn verify_without_a_folder_compares_with_the_reference() {
    let output = mnemon(&["verify", "--device", "cpu", "--json"]);
    let all = lines(&output);
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(all.len() > 10 && all.iter().all(|r| r["passed"] == true));
}

#[test]
fn bench_prints_nothing_but_lines_of_results() {
    let output = mnemon(&["bench", "--only", "tiny", "--device", "cpu"]);
    let all = lines(&output);
    assert_eq!((code(&output), all.len()), (0, 2), "{}", err(&output));
    for (line, mode) in all.iter().zip(["infer", "train"]) {
        let text = |key: &str| line[key].as_str().unwrap().to_string();
        assert_eq!([text("peer"), text("config"), text("mode")], ["mnemon", "tiny", mode]);
        assert_eq!([text("version"), text("device")], [env!("CARGO_PKG_VERSION"), "cpu"]);
        assert!(text("adapter").starts_with("cpu"));
        let number = |key: &str| line[key].as_f64().unwrap();
        let positive = ["ms", "gflops", "min_ms", "first_ms", "memory_bytes"];
        assert!(positive.iter().all(|k| number(k) > 0.0) && number("iters") >= 5.0);
        assert_eq!(text("plan"), "everything is held at once");
        assert_eq!(line.as_object().unwrap().len(), 13);
    }
}

#[test]
fn bench_takes_configurations_from_a_file_and_refuses_unknown_names() {
    let path = folder("bench").join("configs.json");
    std::fs::write(&path, r#"[{"name": "odd", "B": 3, "T": 5, "I": 7, "H": 1, "layers": 3}]"#).unwrap();
    let output = mnemon(&["bench", "--configs", text(&path), "--device", "cpu", "--modes", "train"]);
    assert_eq!((code(&output), lines(&output).len()), (0, 1), "{}", err(&output));
    assert_eq!(lines(&output)[0]["config"], "odd");
    std::fs::write(&path, r#"[{"name": "empty", "B": 3, "T": 5, "I": 7, "H": 0, "layers": 3}]"#).unwrap();
    let output = mnemon(&["bench", "--configs", text(&path), "--device", "cpu", "--modes", "infer"]);
    assert!(lines(&output)[0]["error"].as_str().unwrap().contains("hidden_size must be at least 1"));
    assert_eq!(code(&output), 1);
    refused(&["bench", "--only", "tiny,huge", "--device", "cpu"], &[2], &["`huge`", "ptb_medium"]);
    refused(&["bench", "--configs", "no/such/file.json"], &[1], &["no/such/file.json"]);
    refused(&["bench", "--modes", "sing"], &[2], &["sing"]);
    std::fs::write(&path, "[{").unwrap();
    refused(&["bench", "--configs", text(&path)], &[1], &["configs.json"]);
}

/// A small text in a folder of its own.
fn story(name: &str) -> PathBuf {
    let path = folder(name).join("story.txt");
    std::fs::write(&path, "The cat sat on the mat. The dog sat on the log.\n".repeat(20)).unwrap();
    path
}

/// `mnemon train STORY --output OUTPUT` on the CPU with a small model and further arguments.
fn train(story: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let mut all: Vec<&str> = vec!["train", text(story), "--output", text(output), "--device", "cpu"];
    let small = [["--hidden", "12"], ["--embedding", "6"], ["--batch", "4"], ["--sequence", "8"]];
    all.extend(small.iter().filter(|pair| !more.contains(&pair[0])).flatten().chain(more));
    all.into_iter().map(str::to_string).collect()
}

fn run(arguments: &[String]) -> Output {
    mnemon(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn train_and_generate() {
    let story = story("train");
    let model = story.with_file_name("model.safetensors");
    let output = run(&train(&story, &model, &["--epochs", "2", "--dropout", "0.1"]));
    let log = err(&output);
    assert_eq!(code(&output), 0, "{log}");
    let epochs: Vec<&str> = log.lines().filter(|l| l.starts_with("epoch ")).collect();
    let words: Vec<&str> = epochs[1].split(' ').collect();
    assert_eq!(
        [words[0], words[1], words[2], words[4], words[6], words[8]],
        ["epoch", "2/2", "loss", "val_loss", "val_bpc", "tok/s"]
    );
    assert!([3, 5, 7, 9].iter().all(|&w| words[w].parse::<f64>().unwrap() > 0.0) && epochs.len() == 2, "{log}");
    assert!(out(&output).contains("saved to "), "a sample and where the model is");

    let generate = |more: &[&str]| {
        let mut all = vec!["generate", "--model", text(&model), "--device", "cpu", "--length", "40"];
        all.extend(more);
        mnemon(&all)
    };
    let one = generate(&["--prompt", "The cat", "--seed", "3"]);
    assert_eq!(code(&one), 0, "{}", err(&one));
    assert!(out(&one).starts_with("The cat") && out(&one).chars().count() == 7 + 40 + 1);
    assert_eq!(out(&one), out(&generate(&["--prompt", "The cat", "--seed", "3"])));
    assert_ne!(out(&one), out(&generate(&["--prompt", "The cat", "--seed", "4", "--temperature", "2"])));
    assert_eq!(out(&generate(&["--temperature", "0"])), out(&generate(&["--top-k", "1", "--seed", "9"])));
    let unseen = generate(&["--prompt", "The caß"]);
    assert!(code(&unseen) == 1 && err(&unseen).contains("'ß'") && err(&unseen).contains("position 6"));
    assert!(out(&unseen).is_empty());
}

#[test]
fn training_resumes_bit_for_bit_and_repeats_itself() {
    let story = story("resume");
    let file = |name: &str| story.with_file_name(name);
    let bits = |name: &str| std::fs::read(file(name)).unwrap();
    for name in ["whole", "again"] {
        assert_eq!(code(&run(&train(&story, &file(name), &["--epochs", "3", "--dropout", "0.2"]))), 0);
    }
    assert!(bits("whole") == bits("again"), "one seed, one result");
    assert_eq!(code(&run(&train(&story, &file("part"), &["--steps", "31", "--dropout", "0.2"]))), 0);
    assert!(bits("whole") != bits("part"));
    let resumed = mnemon(&["train", text(&story), "--resume", text(&file("part")), "--epochs", "3", "--device", "cpu"]);
    assert_eq!(code(&resumed), 0, "{}", err(&resumed));
    assert!(bits("whole") == bits("part"), "resuming keeps the bits");

    let resume = ["train", text(&story), "--resume", text(&file("part")), "--device", "cpu"].map(str::to_string);
    let before = bits("part");
    let with = |more: &[&str]| [&resume[..], &more.iter().map(|s| s.to_string()).collect::<Vec<_>>()].concat();
    assert_eq!(code(&run(&with(&["--hidden", "9"]))), 2, "a resumed model keeps its sizes");
    let other = run(&with(&["--validation", "0.2"]));
    assert!(code(&other) == 1 && err(&other).contains("validation share"), "{}", err(&other));
    assert!(bits("part") == before, "a refusal changes nothing");
}

#[test]
fn bad_training_input_is_refused() {
    let story = story("refused");
    let model = story.with_file_name("model.safetensors");
    let with = |path: &Path, more: &[&str], codes: &[i32], wanted: &[&str]| {
        let arguments = train(path, &model, more);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), codes, wanted);
        assert!(!model.exists());
    };
    let beside = |name: &str, bytes: &[u8]| {
        std::fs::write(story.with_file_name(name), bytes).unwrap();
        story.with_file_name(name)
    };
    with(Path::new("no/such/text.txt"), &[], &[1], &["no/such/text.txt"]);
    with(&beside("empty.txt", b""), &[], &[1], &["at least one character"]);
    with(&beside("binary", &[0xff, 0xfe, 0]), &[], &[1], &["1 other files skipped"]);
    with(&beside("short.txt", b"abc abc"), &[], &[1], &["8 tokens", "33", "got 7"]);
    with(&story, &["--hidden", "0"], &[1, 2], &["got 0"]);
    with(&story, &["--layers", "0"], &[2], &["layers"]);
    with(&story, &["--dropout", "1.5"], &[2], &["1.5"]);
    with(&story, &["--learning-rate=-1"], &[2], &["learning_rate", "-1"]);
    with(&story, &["--validation", "2"], &[2], &["validation share"]);
    with(&story, &["--clip=-1"], &[2], &["-1"]);
    let nowhere = Path::new("no/such/folder/model.safetensors");
    let arguments = train(&story, nowhere, &[]);
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[1], &["no/such/folder"]);
    let foreign = beside("foreign.safetensors", b"not a model");
    refused(&["train", text(&story), "--resume", text(&foreign)], &[1], &["foreign.safetensors"]);
    refused(&["generate", "--model", text(&foreign), "--device", "cpu"], &[1], &["foreign.safetensors"]);
    refused(&["generate", "--model", "no/such/model"], &[1], &["no/such/model"]);
    let plain = format!("{CONFORMANCE}/plain.safetensors");
    refused(&["generate", "--model", &plain, "--device", "cpu"], &[1], &["plain.safetensors"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_training_and_keeps_what_was_good() {
    let story = story("not_finite");
    let model = story.with_file_name("model.safetensors");
    let output = run(&train(&story, &model, &["--learning-rate", "1e37", "--clip", "0"]));
    let log = err(&output);
    assert_eq!(code(&output), 1, "{log}");
    assert!(log.contains("not finite at step ") && !log.contains("panicked"), "{log}");
    let generated = mnemon(&["generate", "--model", text(&model), "--device", "cpu", "--length", "3"]);
    assert!(!err(&generated).contains("panicked"), "{}", err(&generated));
}

#[cfg(unix)]
mod interrupted {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Stdio};

    /// Training without an end, as soon as `after` epochs are done.
    fn training(story: &Path, model: &Path, after: usize) -> (Child, BufReader<std::process::ChildStderr>) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mnemon"))
            .args(train(story, model, &["--epochs", "1000000"]))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut line, mut epochs) = (String::new(), 0);
        while epochs < after {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "training ended");
            epochs += usize::from(line.starts_with("epoch "));
        }
        (child, log)
    }

    #[test]
    fn control_c_saves_and_says_how_to_resume() {
        let story = story("interrupted");
        let model = story.with_file_name("model.safetensors");
        let (mut child, mut log) = training(&story, &model, 2);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut log, &mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
        let command = format!("mnemon train {} --resume {}", story.display(), model.display());
        assert!(rest.contains("stopped at step ") && rest.contains(&command), "{rest}");
        let resumed = mnemon(&["train", text(&story), "--resume", text(&model), "--epochs", "1", "--device", "cpu"]);
        assert_eq!(code(&resumed), 0, "{}", err(&resumed));
        assert!(err(&resumed).contains("nothing is left to do"), "{}", err(&resumed));
    }

    /// A killed process leaves a whole file, from which training goes on to the bits of training that was never killed.
    #[test]
    fn a_kill_loses_nothing_that_was_saved() {
        const EPOCHS: &str = "60";
        let story = story("killed");
        let whole = story.with_file_name("whole.safetensors");
        assert_eq!(code(&run(&train(&story, &whole, &["--epochs", EPOCHS]))), 0);
        for epochs in [2, 3, 5] {
            let model = story.with_file_name(format!("killed-{epochs}.safetensors"));
            let (mut child, _log) = training(&story, &model, epochs);
            child.kill().unwrap();
            child.wait().unwrap();
            let output = mnemon(&["generate", "--model", text(&model), "--device", "cpu", "--length", "5"]);
            assert_eq!(code(&output), 0, "{}", err(&output));
            let again = ["train", text(&story), "--resume", text(&model), "--epochs", EPOCHS, "--device", "cpu"];
            let resumed = mnemon(&again);
            assert_eq!(code(&resumed), 0, "{}", err(&resumed));
            assert!(std::fs::read(&model).unwrap() == std::fs::read(&whole).unwrap(), "after {epochs} epochs");
        }
    }
}

#[test]
fn models_from_elsewhere_are_summarised_run_and_compared() {
    let at = |name: &str| format!("{MODELS}/{name}");
    let output = mnemon(&["summary", &at("translate.keras")]);
    let text_out = out(&output);
    for wanted in ["encoder (lstm)", "[B, T, 6]", "source (input)", "total"] {
        assert!(text_out.contains(wanted), "{text_out}");
    }
    assert_eq!(code(&output), 0, "{}", err(&output));

    let to = folder("run").join("y.safetensors");
    let expected = at("average.safetensors");
    let output = mnemon(&["run", &at("average.keras"), "--input", &expected, "--output", text(&to), "--device", "cpu"]);
    assert!(code(&output) == 0 && out(&output).contains("y F32 [3, 7, 3]"), "{} {}", out(&output), err(&output));
    let (given, wrote) = (mnemon::io::read_tensors(Path::new(&expected)), mnemon::io::read_tensors(&to));
    let (given, wrote) = (given.unwrap(), wrote.unwrap());
    let pairs = given["out.y"].f32s().unwrap().iter().zip(wrote["y"].f32s().unwrap());
    assert!(pairs.clone().count() == 63 && pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));

    let compare = |model: &str, expected: &str, more: &[&str]| {
        let (model, expected) = (at(model), at(expected));
        mnemon(&[&["compare", &model, &expected, "--device", "cpu"], more].concat())
    };
    let output = compare("deep.state.safetensors", "deep.safetensors", &[]);
    for wanted in ["pass out.greedy", "pass out.loss", "pass grad.rnn.weight_hh_l2", "13 passed, 0 failed"] {
        assert!(out(&output).contains(wanted), "{}", out(&output));
    }
    assert_eq!(code(&output), 0);
    // A tolerance that f32 cannot meet: it ran, and differs.
    let output = compare("average.keras", "average.safetensors", &["--tol", "1e-12"]);
    assert!(code(&output) == 1 && out(&output).contains("FAIL out.y"), "{}", out(&output));
    // What the entry in cases.json says of a state dict holds: by names and shapes alone `square` is ambiguous.
    assert_eq!(code(&compare("square.state.safetensors", "square.safetensors", &[])), 0);
    refused(&["summary", &at("square.state.safetensors")], &[2], &["`a` may be either", "a configuration"]);
    refused(&["compare", &at("gru.keras"), &at("gru.safetensors")], &[2], &["gru: the layer GRU is not supported"]);
    refused(&["compare", &at("average.keras"), &at("none.safetensors")], &[2], &["none.safetensors", "cannot open"]);
    refused(&["compare", &at("average.keras"), &at("states.safetensors"), "--tol", "nan"], &[2], &["--tol"]);
    refused(&["compare", &at("average.keras"), &at("tagger.safetensors")], &[2], &["x: expected floats [3, T, 4]"]);
    refused(&["run", &at("average.keras"), "--input", &at("translate.safetensors")], &[2], &["expected the inputs"]);
    refused(&["summary", &at("cases.json")], &[1], &["cases.json", "whole safetensors"]);
}

#[test]
fn plans_are_printed_and_budgets_that_cannot_be_kept_are_refused() {
    let model = format!("{MODELS}/tagger.keras");
    let whole = mnemon(&["plan", &model, "--device", "cpu", "--mode", "train", "--loss", "cross-entropy"]);
    assert_eq!(code(&whole), 0, "{}", err(&whole));
    for wanted in ["everything is held at once", "half of the host's memory", "lstm_backward", "arena 0", "live bytes"]
    {
        assert!(out(&whole).contains(wanted), "{wanted} in {}", out(&whole));
    }
    let long = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/long.json");
    let plan = |memory: &str| {
        mnemon(&["plan", "--configs", long, "--only", "long", "--mode", "train", "--memory", memory, "--device", "cpu"])
    };
    let parts = plan("256MiB");
    assert!(code(&parts) == 0 && out(&parts).contains("gates are computed again every 320 steps"), "{}", out(&parts));
    let refused_plan = plan("1MiB");
    let needed = err(&refused_plan);
    assert!(code(&refused_plan) == 1 && needed.contains("needs at least"), "{needed}");
    // What the error names does.
    let bytes = needed.split("needs at least ").nth(1).and_then(|t| t.split(' ').next()).unwrap().to_string();
    assert_eq!(code(&plan(&bytes)), 0, "{bytes}");
    refused(&["plan", &model, "--steps", "0"], &[2], &["--steps"]);
    refused(&["plan", &model, "--memory", "much"], &[2], &["much"]);
    refused(&["plan", "missing.keras"], &[1], &["missing.keras"]);
    refused(&["plan", "--lengths", "3,4"], &[2], &["--lengths"]);
    let ragged = mnemon(&["plan", &model, "--lengths", "9,3,5", "--device", "cpu", "--brief"]);
    assert!(code(&ragged) == 0 && out(&ragged).contains("N 18"), "{} {}", out(&ragged), err(&ragged));
}

#[test]
fn training_says_what_a_budget_does_not_hold() {
    let folder = folder("budget");
    let source = folder.join("a.txt");
    std::fs::write(&source, "to be or not to be, that is the question. ".repeat(90)).unwrap();
    let output = folder.join("m.safetensors");
    let train = ["train", text(&source), "--steps", "2", "--output", text(&output), "--device", "cpu"];
    refused(&[&train[..], &["--memory", "100KB"]].concat(), &[1], &["needs at least", "as asked"]);
    assert!(!output.exists());
    let trained = mnemon(&[&train[..], &["--memory", "64MiB"]].concat());
    assert!(code(&trained) == 0 && err(&trained).contains("the device waited"), "{}", err(&trained));
}

#[test]
fn strategies_are_for_gpus() {
    for flags in [&["--strategy", "step"][..], &["--tune", "on"], &["--grid"], &["--precision", "f16-weights"]] {
        let out = mnemon(&[&["bench", "--only", "tiny", "--device", "cpu"], flags].concat());
        assert!(out.status.code() == Some(1) || out.status.code() == Some(2), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("for GPUs"), "{out:?}");
    }
    let out = mnemon(&["bench", "--only", "tiny", "--device", "cpu", "--strategy", "spiral"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("sequence-registers"), "{out:?}");
}
