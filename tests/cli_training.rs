//! What the command writes of trainings, as a user meets it: runs, pictures, words, classifiers, full disks.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mnemon-cli-training-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnemon"));
    for variable in ["MNEMON_GPU_LIMITS", "MNEMON_THREADS", "MNEMON_MEMORY", "MNEMON_LOG"] {
        command.env_remove(variable);
    }
    command.current_dir(folder).env("MNEMON_DEVICE", "cpu").args(arguments.split(' ').filter(|a| !a.is_empty()));
    command
}

fn mnemon(folder: &Path, arguments: &str) -> Output {
    command(folder, arguments).output().unwrap()
}

fn ok(folder: &Path, arguments: &str) -> (String, String) {
    let output = mnemon(folder, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{arguments}: {err}");
    (out, err)
}

fn refused(folder: &Path, arguments: &str, code: i32, wanted: &str) {
    let output = mnemon(folder, arguments);
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(code) && err.contains(wanted) && !err.contains("panicked"),
        "{arguments}: {err}"
    );
}

const STORY: &str = "the cat sat on the mat\nthe dog ran to the cat\nthe cat ran to the mat\n";
const SMALL: &str = "--hidden 12 --batch 4 --sequence 8";

fn lines(path: PathBuf) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(String::from).collect()
}

#[test]
fn every_training_is_recorded_and_runs_are_drawn_together() {
    let folder = folder("runs");
    std::fs::write(folder.join("story.txt"), STORY.repeat(20)).unwrap();
    let (_, err) = ok(&folder, &format!("train story.txt {SMALL} --epochs 2 --output a.safetensors"));
    assert!(err.contains("records are in runs/a"), "{err}");
    let run = folder.join("runs/a");
    let history = lines(run.join("history.csv"));
    let names = "epoch,loss,bits_per_character,val_loss,val_bits_per_character,learning_rate,seconds,tokens_per_second";
    assert_eq!((history[0].as_str(), history.len()), (names, 3));
    for file in ["config.json", "environment.json", "history.json", "history.svg", "checkpoints/best.safetensors"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(run.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["training"]["model"]["hidden"], 12);
    // Resumed, it goes on in the same folder; begun again, it has another.
    ok(&folder, "train story.txt --resume a.safetensors --epochs 3");
    assert_eq!(lines(run.join("history.csv")).len(), 4);
    ok(
        &folder,
        &format!("train story.txt {SMALL} --epochs 1 --output a.safetensors --optimizer nadam --schedule cosine"),
    );
    assert_eq!(lines(run.join("history.csv")).len(), 4);
    assert_eq!(lines(folder.join("runs/a-2/history.csv")).len(), 2);
    let (out, _) = ok(&folder, "plot runs/a runs/a-2 --output both.svg");
    assert!(out.contains("2 runs"));
    let svg = std::fs::read_to_string(folder.join("both.svg")).unwrap();
    assert!(svg.contains("a-2, validation") && svg.contains("learning rate"), "{svg}");
    refused(&folder, "plot runs/none", 1, "runs/none/history.json");
    refused(&folder, &format!("train story.txt {SMALL} --run runs/a"), 2, "holds a run already");
    refused(&folder, "plot", 2, "RUN");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn words_and_bytes_are_learnt_and_texts_evaluated() {
    let folder = folder("words");
    std::fs::write(folder.join("story.txt"), STORY.repeat(30)).unwrap();
    std::fs::write(folder.join("test.txt"), "the cat ran to the zoo\n").unwrap();
    let small = "--hidden 24 --batch 4 --sequence 8 --tied --dropout 0.1 --variational --weight-drop 0.1";
    let learnt =
        format!("train story.txt {small} --level words --epochs 6 --learning-rate 0.02 --output w.safetensors");
    let (_, err) = ok(&folder, &learnt);
    // the cat sat on mat dog ran to, <eos>, <unk>
    assert!(err.contains("10 distinct words") && err.contains("val_ppl"), "{err}");
    let (out, err) = ok(&folder, "evaluate --model w.safetensors test.txt story.txt");
    assert!(
        out.contains("words predicted: loss ") && out.contains("perplexity") && err.contains("words a second"),
        "{out}"
    );
    let perplexity: f64 = out.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(perplexity > 1.0 && perplexity < 6.0, "it has learnt: {out}");
    let (out, _) = ok(&folder, "generate --model w.safetensors --prompt the --length 30 --temperature 0.5");
    assert!(out.starts_with("the ") && out.contains("\nthe ") && !out.contains("  "), "{out}");
    ok(&folder, &format!("train story.txt {SMALL} --level bytes --epochs 1 --output b.safetensors"));
    let (out, _) = ok(&folder, "evaluate --model b.safetensors test.txt");
    assert!(out.contains("22 bytes predicted") && out.contains("bits per byte"), "{out}");
    refused(&folder, "train story.txt --tokenizer story.txt", 1, "story.txt");
    refused(&folder, "train story.txt --tokenizer story.txt --level words", 2, "--level");
    refused(&folder, "train story.txt --level words --tied --hidden 8 --embedding 9", 2, "tied");
    refused(&folder, "evaluate --model none.safetensors test.txt", 1, "none.safetensors");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn classifiers_learn_labels_and_say_them() {
    let folder = folder("classify");
    let (good, bad) = (
        ["a fine film", "truly a joy", "fine acting and a joy"],
        ["a dull film", "truly a bore", "dull acting and a bore"],
    );
    let rows = |times: usize| {
        let pairs = (0..times).flat_map(|n| [(good[n % 3], "pos"), (bad[n % 3], "neg")]);
        pairs.map(|(text, label)| format!("{text}\t{label}\n")).collect::<String>()
    };
    std::fs::write(folder.join("train.tsv"), rows(60)).unwrap();
    std::fs::write(folder.join("dev.tsv"), rows(9)).unwrap();
    let sizes = "--hidden 8 --embedding 8 --batch 8 --epochs 8 --learning-rate 0.01";
    let (out, err) = ok(&folder, &format!("classify train.tsv --dev dev.tsv --output c.safetensors {sizes}"));
    assert!(err.contains("120 texts to train on, 18 to validate") && err.contains("2 labels"), "{err}");
    assert!(out.contains("accuracy 1.0000 of 18 texts") && out.contains("predicted"), "{out}");
    assert!(folder.join("runs/c/history.svg").is_file());
    let (out, _) = ok(&folder, "classify --model c.safetensors --report dev.tsv");
    assert!(out.contains("accuracy 1.0000 of 18 texts"), "{out}");
    let mut child = command(&folder, "classify --model c.safetensors");
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"a joy\nsuch a bore\n\n").unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let labels: Vec<&str> = out.lines().map(|l| l.split('\t').next().unwrap()).collect();
    assert_eq!((&labels[..2], labels.len()), (&["pos", "neg"][..], 3), "{out}");
    std::fs::write(folder.join("other.tsv"), "a film\tmaybe\n").unwrap();
    refused(&folder, "classify --model c.safetensors --report other.tsv", 1, "`maybe` is not among");
    std::fs::write(folder.join("one.tsv"), "a film\tpos\nb film\tpos\n").unwrap();
    refused(&folder, "classify one.tsv --output d.safetensors", 1, "at least two labels");
    refused(&folder, "classify", 2, "--model");
    refused(&folder, "classify --model c.safetensors --epochs 3", 2, "--epochs");
    // A label of one text alone is learnt, whatever the lot.
    std::fs::write(folder.join("rare.tsv"), format!("{}odd one\trare\n", rows(20))).unwrap();
    let (_, err) = ok(&folder, &format!("classify rare.tsv --output r.safetensors {sizes}"));
    assert!(err.contains("3 labels"), "{err}");
    refused(&folder, "classify --model runs/c/config.json", 1, "config.json");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn taggers_learn_a_label_for_each_word() {
    let folder = folder("tag");
    let texts = ["Ann\tN\nruns\tV\nfar\tA\n", "Bob\tN\nsings\tV\n", "far\tA\nAnn\tN\nsings\tV\nBob\tN\n"];
    let rows = |times: usize| (0..times).map(|n| format!("{}\n", texts[n % 3])).collect::<String>();
    std::fs::write(folder.join("train.conll"), rows(90)).unwrap();
    std::fs::write(folder.join("dev.conll"), rows(9)).unwrap();
    let sizes = "--hidden 8 --embedding 8 --batch 8 --epochs 6 --learning-rate 0.02 --dropout 0.1";
    let (out, err) = ok(&folder, &format!("tag train.conll --dev dev.conll --output t.safetensors {sizes}"));
    assert!(err.contains("90 texts to train on, 9 to validate") && err.contains("3 labels"), "{err}");
    assert!(out.contains("accuracy 1.0000 of 27 words"), "{out}");
    let mut child = command(&folder, "tag --model t.safetensors");
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"Bob runs far\n\nAnn\n").unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(out, "Bob\tN\nruns\tV\nfar\tA\n\n\nAnn\tN\n\n");
    refused(&folder, "classify --model t.safetensors", 1, "expected a classifier");
    refused(&folder, "tag --model t.safetensors --report none.conll", 1, "none.conll");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn series_are_forecast_better_than_by_their_last_value() {
    let folder = folder("forecast");
    let rows = mnemon::data::AIR_PASSENGERS.iter().enumerate();
    let rows = rows.map(|(n, v)| match n {
        40 => format!("{}-{:02};\n", 1949 + n / 12, n % 12 + 1),
        _ => format!("{}-{:02};{v}\n", 1949 + n / 12, n % 12 + 1),
    });
    std::fs::write(folder.join("series.csv"), format!("month;passengers\n{}", rows.collect::<String>())).unwrap();
    let small = "--hidden 16 --epochs 60 --learning-rate 0.01 --batch 16";
    let (out, err) = ok(&folder, &format!("forecast series.csv --log --horizon 6 --test 18 --output air {small}"));
    assert!(err.contains("1 missing values of `passengers`") && err.contains("a season of 12"), "{err}");
    let errors = |name: &str| -> f64 {
        let line = out.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
        line.trim_start().trim_start_matches(name).split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(errors("lstm") < 0.7 * errors("last value"), "{out}");
    assert!(out.contains("inside the 80 % intervals"), "{out}");
    let csv = lines(folder.join("air.csv"));
    assert_eq!((csv.len(), csv[0].as_str()), (7, "ahead,\"passengers\",\"passengers low\",\"passengers high\""));
    let last: Vec<f32> = csv[6].split(',').map(|f| f.parse().unwrap()).collect();
    assert!(last[0] == 6.0 && last[2] < last[1] && last[1] < last[3] && (300.0..800.0).contains(&last[1]), "{last:?}");
    let svg = std::fs::read_to_string(folder.join("air.svg")).unwrap();
    assert!(svg.contains("80 % interval") && svg.contains("1960") && folder.join("air.safetensors").is_file());
    refused(&folder, "forecast series.csv --output series", 2, "would be written over");
    refused(&folder, "forecast series.csv --level 1.5", 2, "1.5");
    refused(&folder, "forecast series.csv --season 110 --steps 24", 2, "a season must have");
    refused(&folder, "forecast series.csv --steps 1", 2, "steps must be at least 2");
    refused(&folder, "forecast series.csv --horizon 60", 1, "144 for training");
    refused(&folder, "forecast missing.csv", 1, "missing.csv");
    refused(&folder, "forecast series.csv --column none", 2, "no column `none`");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Runs a command until its standard error has said `line`, and kills it some milliseconds later.
fn killed_after(folder: &Path, arguments: &str, line: &str, later: u64) {
    let mut child = command(folder, arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let found = lines.map_while(std::result::Result::ok).any(|said| said.starts_with(line));
    std::thread::sleep(std::time::Duration::from_millis(later));
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(found && !status.success(), "{arguments}: it should have been killed after {line}");
}

#[test]
fn a_training_that_was_killed_is_gone_on_with() {
    let folder = folder("killed");
    let text =
        |at: usize| format!("{} film of no {at}\t{}\n", if at.is_multiple_of(3) { "fine" } else { "dull" }, at % 3 / 2);
    std::fs::write(folder.join("train.tsv"), (0..400).map(text).collect::<String>()).unwrap();
    let words = "classify train.tsv --hidden 24 --embedding 24 --epochs 40 --batch 8";
    ok(&folder, &format!("{words} --output whole.safetensors"));
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    killed_after(&folder, &format!("{words} --output killed.safetensors"), "epoch 3/", 0);
    assert!(!folder.join("killed.safetensors").exists());
    refused(&folder, &format!("{words} --output other.safetensors --resume"), 2, "no training");
    refused(&folder, &format!("{words} --seed 1 --output killed.safetensors --resume"), 2, "of another training");
    ok(&folder, &format!("{words} --output killed.safetensors --resume"));
    assert!(bytes("killed.safetensors") == bytes("whole.safetensors"));
    assert_eq!(lines(folder.join("runs/killed/history.csv")).len(), 41);
    let left: Vec<_> = std::fs::read_dir(folder.join("runs/killed/checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    let wave = (0..600).map(|t| format!("{:.4}\n", (t as f32 * 0.37).sin() + 2.0)).collect::<String>();
    std::fs::write(folder.join("wave.csv"), format!("y\n{wave}")).unwrap();
    let forecast = "forecast wave.csv --hidden 64 --epochs 40 --horizon 4 --season 17";
    ok(&folder, &format!("{forecast} --output whole"));
    killed_after(&folder, &format!("{forecast} --output waves"), "records are in", 300);
    assert!(!folder.join("waves.csv").exists());
    refused(&folder, &format!("{forecast} --output other --resume"), 2, "no training");
    refused(&folder, &format!("{forecast} --batch 5 --output waves --resume"), 2, "of another training");
    ok(&folder, &format!("{forecast} --output waves --resume"));
    for ending in ["safetensors", "csv", "svg"] {
        assert!(bytes(&format!("waves.{ending}")) == bytes(&format!("whole.{ending}")), "{ending}");
    }

    std::fs::write(folder.join("story.txt"), STORY.repeat(20)).unwrap();
    let (_, err) = ok(&folder, &format!("train story.txt {SMALL} --learning-rate 0.5 --epochs 30 --patience 2"));
    assert!(err.contains("no better for 2 epochs"), "{err}");
    assert!(lines(folder.join("runs/model/history.csv")).len() < 31);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_model_of_words_remembers() {
    let folder = folder("memory");
    // Names that no training has: what is remembered is worth something.
    let mut story = STORY.repeat(30);
    story += &"the fox met the owl at the mat and the fox asked the owl for the cat\n".repeat(8);
    std::fs::write(folder.join("story.txt"), &story).unwrap();
    std::fs::write(folder.join("tale.txt"), &story[story.len() - 500..]).unwrap();
    let small = "--level words --layers 1 --hidden 12 --batch 4 --sequence 8 --epochs 4 --validation 0";
    ok(&folder, &format!("train story.txt {small} --output plain.safetensors"));
    let score = |arguments: &str| -> f64 {
        let out = ok(&folder, &format!("evaluate {arguments} tale.txt")).0;
        out.trim().rsplit(' ').next().unwrap().parse().unwrap()
    };
    let alone = score("--model plain.safetensors");
    let (_, err) = ok(&folder, "evaluate --model plain.safetensors --working-memory 50 tale.txt");
    assert!(err.contains("mnemon tune-memory"), "it was not fitted: {err}");
    for mixture in ["global", "linear"] {
        let fit = format!("tune-memory --model plain.safetensors --window 50 --mixture {mixture} tale.txt");
        let (out, err) = ok(&folder, &fit);
        assert!(out.contains("theta") && out.contains("words predicted") && err.contains("kept in"), "{out} {err}");
        assert!(score("--model plain.safetensors --working-memory 50") < 0.9 * alone);
    }
    assert_eq!(score("--model plain.safetensors"), alone, "only where it is asked for");
    // What was fitted does not stand in the way of training.
    ok(&folder, "train story.txt --resume plain.safetensors --epochs 5 --validation 0");
    let (text, lines) =
        ok(&folder, "generate --model plain.safetensors --working-memory 50 --prompt the --length 20 --explain");
    assert!(text.starts_with("the ") && lines.lines().count() == 20, "{text} {lines}");
    assert!(lines.contains(" back ") && lines.contains("memory"), "{lines}");

    let pointer = format!("train story.txt {small} --working-memory 40 --output pointer.safetensors");
    let (_, err) = ok(&folder, &format!("{pointer} --steps 20"));
    assert!(err.contains("parameters"), "{err}");
    ok(&folder, "train story.txt --resume pointer.safetensors --epochs 4 --validation 0");
    assert!(score("--model pointer.safetensors").is_finite());
    assert_eq!(score("--model pointer.safetensors --working-memory 40"), score("--model pointer.safetensors"));
    let summary = ok(&folder, "summary pointer.safetensors").0;
    assert!(summary.contains("working_memory"), "{summary}");

    refused(&folder, "tune-memory --model pointer.safetensors tale.txt", 2, "of its own");
    refused(&folder, "tune-memory --model none.safetensors tale.txt", 1, "none.safetensors");
    refused(&folder, "generate --model plain.safetensors --explain", 2, "--working-memory");
    refused(&folder, "evaluate --model plain.safetensors --working-memory 0 tale.txt", 2, "0");
    let regular = "--embedding-dropout 0.1 --weight-drop 0.3 --variational --activation-penalty 2 --temporal-penalty 1";
    ok(&folder, &format!("train story.txt {small} {regular} --dropout 0.3 --output awd.safetensors"));
    refused(&folder, &format!("train story.txt {small} --embedding-dropout 1"), 2, "[0, 1)");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A disk that is full, or a limit on files, ends training with an error and leaves the last good checkpoint as it was.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let folder = folder("full");
    std::fs::write(folder.join("story.txt"), STORY.repeat(20)).unwrap();
    ok(&folder, &format!("train story.txt {SMALL} --epochs 1"));
    let before = std::fs::read(folder.join("model.safetensors")).unwrap();
    // In blocks of 512 bytes: less than the model takes.
    let blocks = before.len() / 1024;
    let limited = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec '{}' train story.txt --resume model.safetensors --epochs 2",
        env!("CARGO_BIN_EXE_mnemon")
    );
    let output =
        Command::new("sh").current_dir(&folder).env("MNEMON_DEVICE", "cpu").args(["-c", &limited]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && err.contains("cannot write") && err.contains("model.safetensors"),
        "{err}"
    );
    assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == before);
    assert_eq!(lines(folder.join("runs/model/history.csv")).len(), 2, "what was not saved is not recorded");
    // With room it goes on from there.
    ok(&folder, "train story.txt --resume model.safetensors --epochs 2");
    assert_eq!(lines(folder.join("runs/model/history.csv")).len(), 3);
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}
