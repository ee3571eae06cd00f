//! What `fit` takes besides samples, what it tells callbacks, and what it writes.

mod common;

use mnemon::device::Device;
use mnemon::error::{ErrorKind, Result};
use mnemon::nn::{Activation, Dense, Input, Lstm, Network, Sequential};
use mnemon::optim::{Adam, Average, Optimizer, Schedule, Sgd};
use mnemon::params::Tensor;
use mnemon::train::{
    Backup, Callback, Checkpoint, CsvLog, EarlyStopping, Epoch, Evaluate, Fit, History, Loss, Metric, Model, Named,
    Records, Run, Saved, TerminateOnNan, Training, Watched,
};
use ndarray::{Array1, Array3, ArrayD};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mnemon-training-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// 20 sequences of 5 steps, and whether their sum is above 0.
fn signs() -> (Array3<f32>, Array1<f32>) {
    let x = Array3::from_shape_fn((20, 5, 2), |(s, t, f)| ((s * 7 + t * 3 + f * 5) as f32 * 0.7).sin());
    let y = Array1::from_shape_fn(20, |s| f32::from(u8::from(x.slice(ndarray::s![s, .., ..]).sum() > 0.0)));
    (x, y)
}

fn classifier(device: &Device, optimizer: impl Into<Optimizer>) -> Sequential {
    let mut model = Sequential::new(device);
    model.add(Lstm::new(6)).add(Dense::new(2));
    model.build(Input::Features(2)).unwrap();
    model.compile(optimizer, Loss::CrossEntropy).unwrap();
    model
}

fn bits(model: &mut Sequential) -> Vec<u32> {
    let names: Vec<String> = model.parameters().into_iter().map(|p| p.name).collect();
    names.iter().flat_map(|n| model.parameter(n).unwrap().f32s().unwrap().to_vec()).map(f32::to_bits).collect()
}

#[test]
fn weights_of_classes_and_samples_scale_the_loss_of_their_rows() {
    let (x, y) = signs();
    let per_class = BTreeMap::from([(1, 3.0)]);
    let per_sample = y.mapv(|class| if class == 1.0 { 3.0 } else { 1.0 }).into_dyn();
    for device in common::devices() {
        let trained = |fit: Fit| {
            let mut model = classifier(&device, Sgd { learning_rate: 0.5, ..Sgd::default() });
            let history = model.fit(&x, &y, &Fit { epochs: 2, batch_size: 8, ..fit }).unwrap();
            (history, bits(&mut model))
        };
        let by_class = trained(Fit { class_weight: per_class.clone(), ..Fit::default() });
        let by_sample = trained(Fit { sample_weight: Some(per_sample.clone()), ..Fit::default() });
        assert_eq!(by_class, by_sample);
        assert_ne!(by_class, trained(Fit::default()));
        // A sample of weight 2 is two samples, but for what the sum is divided by.
        let mut model = classifier(&device, Adam::default());
        let twice = Evaluate { sample_weight: Some(ArrayD::from_elem(vec![20], 2.0)), ..Evaluate::default() };
        let (once, twice) = (model.evaluate(&x, &y).unwrap(), model.scores(&x, &y, &twice).unwrap().loss);
        assert!((twice - 2.0 * once).abs() < 1e-6, "{once} {twice}");
    }
    let mut model = classifier(&Device::cpu(), Adam::default());
    let wrong = Fit { sample_weight: Some(ArrayD::zeros(vec![19])), ..Fit::default() };
    assert_eq!(model.fit(&x, &y, &wrong).unwrap_err().kind(), ErrorKind::Shape);
    let negative = Fit { sample_weight: Some(ArrayD::from_elem(vec![20], -1.0)), ..Fit::default() };
    assert_eq!(model.fit(&x, &y, &negative).unwrap_err().kind(), ErrorKind::Data);
    // Weights of steps, of a loss of each value.
    let mut model = Sequential::new(&Device::cpu());
    model.add(Lstm::new(3).return_sequences(true));
    model.compile(Adam::default(), Loss::MeanSquaredError).unwrap();
    let y = Array3::from_elem((20, 5, 3), 0.25f32);
    let mut first = ArrayD::zeros(vec![20, 5]);
    first.slice_mut(ndarray::s![.., 0]).fill(5.0);
    let weighted = Evaluate { sample_weight: Some(first), ..Evaluate::default() };
    model.build(Input::Features(2)).unwrap();
    let (got, out) = (model.scores(&x, &y, &weighted).unwrap().loss, model.predict(&x).unwrap());
    let wanted = out.slice(ndarray::s![.., 0, ..]).mapv(|p| (p - 0.25).powi(2)).mean().unwrap();
    assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
}

#[test]
fn metrics_of_epochs_are_those_of_all_their_rows() {
    let (x, y) = signs();
    let metrics = vec![Metric::Accuracy, Metric::F1, Metric::Auc, Metric::Perplexity];
    for device in common::devices() {
        let mut model = classifier(&device, Adam::default().learning_rate(0.02));
        // Batches of 3 do not divide the samples.
        let validation = Some((x.clone().into_dyn(), y.clone().into_dyn()));
        let fit =
            Fit { epochs: 30, batch_size: 3, metrics: metrics.clone(), validation_data: validation, ..Fit::default() };
        let mut last = None;
        let on_epoch = |epoch: &Epoch| {
            last = Some(epoch.clone());
            ControlFlow::Continue(())
        };
        let history = model.fit_with(&x, &y, &fit, on_epoch).unwrap();
        assert!(history.metrics["accuracy"].len() == 30 && history.metrics["val_auc"].len() == 30);
        let predicted = model.predict(&x).unwrap().into_dimensionality::<ndarray::Ix2>().unwrap();
        let right = predicted.outer_iter().zip(&y).filter(|(p, y)| f32::from(u8::from(p[1] > p[0])) == **y).count();
        let scores = model.scores(&x, &y, &Evaluate { batch_size: 7, metrics: metrics.clone(), ..Evaluate::default() });
        let scores = scores.unwrap();
        assert_eq!(scores.metrics[0], ("accuracy".to_string(), right as f64 / 20.0));
        assert!(scores.metrics[0].1 > 0.85 && scores.metrics[2].1 > 0.9, "it learns: {scores:?}");
        assert!((scores.metrics[3].1 - f64::from(scores.loss).exp()).abs() < 1e-6);
        let last = last.unwrap();
        assert_eq!(last.val_metrics[0], scores.metrics[0]);
        assert_eq!(last.value("val_f1"), Some(scores.metrics[1].1));
        assert_eq!(last.value("learning_rate"), Some(0.02));
    }
    let mut model = classifier(&Device::cpu(), Adam::default());
    let wrong = Fit { metrics: vec![Metric::MeanAbsoluteError], ..Fit::default() };
    assert_eq!(model.fit(&x, &y, &wrong).unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn an_epoch_of_some_steps_goes_on_where_the_last_one_stopped() {
    let (x, y) = signs();
    let device = Device::cpu();
    let trained = |parts: &[Fit]| {
        let mut model = classifier(&device, Adam::default());
        let losses: Vec<f32> = parts.iter().flat_map(|fit| model.fit(&x, &y, fit).unwrap().loss).collect();
        (losses, bits(&mut model))
    };
    // 5 batches of 4: three epochs of 5 are five of 3.
    let fit =
        |epochs: usize, steps: Option<usize>| Fit { epochs, batch_size: 4, steps_per_epoch: steps, ..Fit::default() };
    let (plain, cut) = (trained(&[fit(3, None)]), trained(&[fit(5, Some(3))]));
    assert_eq!((plain.0.len(), cut.0.len()), (3, 5));
    assert_eq!(plain.1, cut.1);
    assert_eq!(cut, trained(&[fit(2, Some(3)), fit(3, Some(3))]), "over calls too");
    // Epochs count from where they are said to.
    let halving = Schedule::PerEpoch(Box::new(Schedule::Step { every: 1, factor: 0.5 }));
    let mut model = classifier(&device, Optimizer::from(Adam::default()).schedule(halving));
    let mut rates = Vec::new();
    let late = Fit { epochs: 4, initial_epoch: Some(2), ..Fit::default() };
    let record = |epoch: &Epoch| {
        rates.push((epoch.epoch, epoch.learning_rate));
        ControlFlow::Continue(())
    };
    model.fit_with(&x, &y, &late, record).unwrap();
    assert_eq!(rates, [(3, 1e-3 / 4.0), (4, 1e-3 / 8.0)]);
    let none = Fit { validation_steps: Some(0), ..Fit::default() };
    for wrong in [fit(1, Some(0)), Fit { validation_frequency: 0, ..Fit::default() }, none] {
        assert_eq!(model.fit(&x, &y, &wrong).unwrap_err().kind(), ErrorKind::Argument);
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Told {
    moments: Vec<String>,
    stop_after: Option<u32>,
}

impl Callback for Told {
    fn on_train_begin(&mut self, _: &mut Training<'_>) -> Result<()> {
        self.moments.push("begin".to_string());
        Ok(())
    }

    fn on_batch_end(&mut self, training: &mut Training<'_>) -> Result<ControlFlow<()>> {
        let step = training.course()?.step;
        self.moments.push(format!("batch {step}"));
        Ok(if self.stop_after == Some(step) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn on_epoch_end(&mut self, _: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        self.moments.push(format!("epoch {}", epoch.epoch));
        Ok(ControlFlow::Continue(()))
    }

    fn on_train_end(&mut self, _: &mut Training<'_>, history: &History) -> Result<()> {
        self.moments.push(format!("end of {}", history.loss.len()));
        Ok(())
    }
}

#[test]
fn callbacks_are_told_of_every_moment_and_may_end_training() {
    let (x, y) = signs();
    let mut told = Told::default();
    let fit = Fit { epochs: 2, batch_size: 10, ..Fit::default() };
    classifier(&Device::cpu(), Adam::default()).fit_with_callbacks(&x, &y, &fit, &mut [&mut told]).unwrap();
    let wanted = ["begin", "batch 1", "batch 2", "epoch 1", "batch 3", "batch 4", "epoch 2", "end of 2"];
    assert_eq!(told.moments, wanted);
    let mut told = Told { stop_after: Some(3), ..Told::default() };
    classifier(&Device::cpu(), Adam::default()).fit_with_callbacks(&x, &y, &fit, &mut [&mut told]).unwrap();
    assert_eq!(told.moments, ["begin", "batch 1", "batch 2", "epoch 1", "batch 3", "end of 1"]);
}

#[test]
fn training_that_gets_no_better_stops_with_the_best_parameters() {
    let (x, y) = signs();
    // Validation on the opposite of what is learnt gets worse from the first epoch on.
    let opposite = Some((x.clone().into_dyn(), y.mapv(|class| 1.0 - class).into_dyn()));
    let fit = Fit { epochs: 50, validation_data: opposite, ..Fit::default() };
    let mut model = classifier(&Device::cpu(), Adam::default().learning_rate(0.05));
    let mut stopping = EarlyStopping::new(Watched::lower("val_loss"), 3).restore_best(true);
    let history = model.fit_with_callbacks(&x, &y, &fit, &mut [&mut stopping]).unwrap();
    assert_eq!(history.loss.len(), 4, "{:?}", history.val_loss);
    let mut first = classifier(&Device::cpu(), Adam::default().learning_rate(0.05));
    first.fit(&x, &y, &Fit { epochs: 1, ..fit.clone() }).unwrap();
    assert_eq!(bits(&mut model), bits(&mut first));
    let mut wrong = EarlyStopping::new(Watched::higher("accuracy"), 1);
    let error = model.fit_with_callbacks(&x, &y, &fit, &mut [&mut wrong]).unwrap_err().to_string();
    assert!(error.contains("no `accuracy`, only loss, val_loss"), "{error}");
}

#[test]
fn checkpoints_keep_the_best_and_the_last_and_logs_have_every_epoch() {
    let (x, y) = signs();
    let folder = folder("checkpoints");
    let mut best = Checkpoint::new(folder.join("best.safetensors"), Saved::Best(Watched::lower("val_loss")));
    let mut last = Checkpoint::new(folder.join("last.safetensors"), Saved::Last(2));
    let mut log = CsvLog::new(folder.join("log.csv"));
    let mut model = classifier(&Device::cpu(), Adam::default().learning_rate(0.3));
    let fit = Fit { epochs: 6, validation_split: 0.25, ..Fit::default() };
    let history = model.fit_with_callbacks(&x, &y, &fit, &mut [&mut best, &mut last, &mut log]).unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["best.safetensors", "last-0005.safetensors", "last-0006.safetensors", "log.csv"]);
    let held_out = (x.slice(ndarray::s![15.., .., ..]).to_owned(), y.slice(ndarray::s![15..]).to_owned());
    let mut best = Sequential::load(&Device::cpu(), folder.join("best.safetensors")).unwrap();
    let least = history.val_loss.iter().copied().fold(f32::INFINITY, f32::min);
    assert!((best.evaluate(&held_out.0, &held_out.1).unwrap() - least).abs() < 1e-6);
    let mut sixth = Sequential::load(&Device::cpu(), folder.join("last-0006.safetensors")).unwrap();
    assert_eq!(bits(&mut sixth), bits(&mut model));
    // One batch of two of the five held out, by the parameters in the end.
    let some =
        Fit { epochs: 1, steps: Some(1), validation_batch_size: Some(2), validation_steps: Some(1), ..fit.clone() };
    let some = Fit { steps_per_epoch: Some(1), ..some };
    let mut other = classifier(&Device::cpu(), Adam::default());
    let part = other.fit(&x, &y, &some).unwrap().val_loss[0];
    let two = (x.slice(ndarray::s![15..17, .., ..]).to_owned(), y.slice(ndarray::s![15..17]).to_owned());
    assert!((part - other.evaluate(&two.0, &two.1).unwrap()).abs() < 1e-6);
    // Another process goes on with the log; a file of another kind is left as it is.
    model
        .fit_with_callbacks(
            &x,
            &y,
            &Fit { epochs: 1, ..Fit::default() },
            &mut [&mut CsvLog::new(folder.join("log.csv"))],
        )
        .unwrap();
    let log = std::fs::read_to_string(folder.join("log.csv")).unwrap();
    assert!(
        log.lines().count() == 8 && log.lines().last().unwrap().contains(",,"),
        "no validation, an empty field: {log}"
    );
    let mut foreign = CsvLog::new(folder.join("best.safetensors"));
    assert!(model.fit_with_callbacks(&x, &y, &fit, &mut [&mut foreign]).is_err());
    let log = std::fs::read_to_string(folder.join("log.csv")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((lines[0], lines.len()), ("epoch,loss,val_loss,learning_rate,seconds", 8));
    assert!(lines[6].starts_with(&format!("6,{},{}", f64::from(history.loss[5]), f64::from(history.val_loss[5]))));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_loss_that_is_not_finite_may_end_training_well() {
    let (x, y) = signs();
    let fit = Fit { epochs: 50, ..Fit::default() };
    let wild = || Sgd { learning_rate: 1e38, ..Sgd::default() };
    let error = classifier(&Device::cpu(), wild()).fit(&x, &y, &fit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFinite);
    let mut model = classifier(&Device::cpu(), wild());
    let history = model.fit_with_callbacks(&x, &y, &fit, &mut [&mut TerminateOnNan]).unwrap();
    assert!(history.loss.len() < 50);
    assert!(bits(&mut model).iter().all(|b| f32::from_bits(*b).is_finite()));
}

/// Fails in the middle of an epoch, as a process that is killed does.
struct Killed(u32);

impl Callback for Killed {
    fn on_batch_end(&mut self, training: &mut Training<'_>) -> Result<ControlFlow<()>> {
        let step = training.course()?.step;
        if step == self.0 {
            Err(mnemon::error::Error::new(ErrorKind::Internal, "killed"))
        } else {
            Ok(ControlFlow::Continue(()))
        }
    }
}

#[test]
fn a_backup_takes_a_new_process_to_the_bits_of_one_that_was_never_killed() {
    let (x, y) = signs();
    let folder = folder("backup");
    let path = folder.join("backup.safetensors");
    let fit = Fit { epochs: 4, batch_size: 3, ..Fit::default() };
    let optimizer = || Optimizer::from(Adam::default()).average(Average::Exponential { momentum: 0.8 }).accumulate(2);
    for device in common::devices() {
        let mut whole = classifier(&device, optimizer());
        let history = whole.fit(&x, &y, &fit).unwrap();
        // Seven steps an epoch: after one, in an epoch's middle, at its end, in the last.
        for killed in [1, 3, 7, 26] {
            let mut backup = Backup::new(&path).every(2);
            let failed = classifier(&device, optimizer()).fit_with_callbacks(
                &x,
                &y,
                &fit,
                &mut [&mut backup, &mut Killed(killed)],
            );
            assert!(failed.is_err());
            let mut resumed = classifier(&device, optimizer());
            let rest = resumed.fit_with_callbacks(&x, &y, &fit, &mut [&mut Backup::new(&path).every(2)]).unwrap();
            assert_eq!(bits(&mut resumed), bits(&mut whole), "{} after {killed}", device.name());
            assert!(history.loss.ends_with(&rest.loss) && !rest.loss.is_empty());
            assert!(!path.exists(), "there is nothing left to go on with");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Stopping early, with the best kept: in one process, and in one that is killed after each epoch, before or after its backup.
#[test]
fn what_was_best_is_known_to_the_next_process() {
    let (x, y) = signs();
    let folder = folder("best-of-processes");
    let fit = Fit { epochs: 40, batch_size: 5, validation_split: 0.25, ..Fit::default() };
    let optimizer = || Adam::default().learning_rate(0.1);
    let stopping = || EarlyStopping::new(Watched::lower("val_loss"), 3).restore_best(true);
    let mut whole = classifier(&Device::cpu(), optimizer());
    let history = whole.fit_with_callbacks(&x, &y, &fit, &mut [&mut stopping()]).unwrap();
    assert!((4..40).contains(&history.loss.len()), "it stopped: {history:?}");
    let [best, last, saved] = ["best", "last", "saved"].map(|name| folder.join(format!("{name}.safetensors")));
    for backup_first in [false, true] {
        let mut rounds = 0;
        let model = loop {
            let mut model = classifier(&Device::cpu(), optimizer());
            let (mut kept, mut backup) = (stopping().kept_in(&best), Backup::new(&last));
            let mut checkpoint = Checkpoint::new(&saved, Saved::Best(Watched::lower("val_loss")));
            let mut killed = AfterEpoch(1 + rounds);
            let mut all: Vec<&mut dyn Callback> = vec![&mut kept, &mut checkpoint, &mut backup, &mut killed];
            if backup_first && rounds % 2 == 1 {
                // What was kept is of an epoch that the backup does not know.
                all.swap(2, 3);
            }
            rounds += 1;
            match model.fit_with_callbacks(&x, &y, &fit, &mut all) {
                Ok(_) => break model,
                Err(error) => assert!(error.to_string().contains("killed"), "{error}"),
            }
            assert!(rounds < 100, "it never ended");
        };
        let mut model = model;
        assert_eq!(bits(&mut model), bits(&mut whole), "{backup_first}");
        let mut saved = Sequential::load(&Device::cpu(), &saved).unwrap();
        assert_eq!(bits(&mut saved), bits(&mut whole), "the best checkpoint is of the same epoch");
        assert!(best.exists() && !last.exists());
    }
    // What another training left does not count.
    let mut again = classifier(&Device::cpu(), optimizer());
    let second = again.fit_with_callbacks(&x, &y, &fit, &mut [&mut stopping().kept_in(&best)]).unwrap();
    assert_eq!(second.loss, history.loss);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Fails after an epoch, in the order of the callbacks.
struct AfterEpoch(usize);

impl Callback for AfterEpoch {
    fn on_epoch_end(&mut self, _: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        if epoch.epoch >= self.0 {
            return Err(mnemon::error::Error::new(ErrorKind::Internal, "killed"));
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn samples_are_predicted_so_many_at_a_time() {
    let (x, y) = signs();
    for device in common::devices() {
        let mut model = classifier(&device, Adam::default());
        model.fit(&x, &y, &Fit { epochs: 1, ..Fit::default() }).unwrap();
        let whole = model.predict(&x).unwrap();
        let parts = model.predict_by(&x, 3).unwrap();
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-6) && whole.dim() == parts.dim());
        assert!(model.predict_by(&x, 0).unwrap_err().to_string().contains("got 0"));
    }
}

#[test]
fn the_average_is_evaluated_and_training_goes_on_from_what_was_averaged() {
    let (x, y) = signs();
    let fit = |epochs: usize| Fit { epochs, shuffle: false, batch_size: 20, ..Fit::default() };
    let average = || Optimizer::from(Sgd { learning_rate: 0.5, ..Sgd::default() }).average(Average::Mean { after: 0 });
    for device in common::devices() {
        // The mean of the parameters after each step but the first, which the average replaces, by hand.
        let mut plain = classifier(&device, Sgd { learning_rate: 0.5, ..Sgd::default() });
        let mut mean = vec![0.0f64; bits(&mut plain).len()];
        for step in 1..=4 {
            plain.fit(&x, &y, &fit(1)).unwrap();
            let now = bits(&mut plain);
            let rate = 1.0 / f64::from((step - 1).max(1));
            mean.iter_mut().zip(&now).for_each(|(m, b)| *m += rate * (f64::from(f32::from_bits(*b)) - *m));
        }
        let mut averaged = classifier(&device, average());
        averaged.fit(&x, &y, &fit(4)).unwrap();
        let got = bits(&mut averaged);
        let error = got.iter().zip(&mean).map(|(g, m)| (f64::from(f32::from_bits(*g)) - m).abs()).fold(0.0, f64::max);
        assert!(error < 1e-6, "{}: {error}", device.name());
        let mut parts = classifier(&device, average());
        parts.fit(&x, &y, &fit(1)).unwrap();
        let folder = folder("average");
        parts.save(folder.join("model.safetensors")).unwrap();
        let mut parts = Sequential::load(&device, folder.join("model.safetensors")).unwrap();
        parts.fit(&x, &y, &fit(3)).unwrap();
        assert_eq!(bits(&mut parts), got, "through a file, too");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_model_of_any_network_saves_its_training_and_goes_on() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(2));
    let h = network.add(Lstm::new(4), &[x]).unwrap();
    let y = network.add(Dense::new(1).activation(Activation::Sigmoid), &h).unwrap();
    network.output("y", y[0]);
    let (x, y) = signs();
    let inputs = Named::from([("x".to_string(), Tensor::from_array(x.view().into_dyn()))]);
    let targets = Named::from([("y".to_string(), Tensor::from_array(y.view().into_dyn()))]);
    let device = Device::cpu();
    let model = |seed| {
        let mut model = Model::initialized(&device, &network, seed).unwrap();
        model.compile(Adam::default(), &[("y", Loss::BinaryCrossEntropy { from_logits: false })]).unwrap();
        model
    };
    let fit = |epochs| Fit { epochs, batch_size: 6, ..Fit::default() };
    let mut whole = model(1);
    whole.fit(&inputs, &targets, &fit(3)).unwrap();
    let folder = folder("model");
    let path = folder.join("model.safetensors");
    let mut first = model(1);
    first.fit(&inputs, &targets, &fit(1)).unwrap();
    first.save(&path).unwrap();
    let mut second = model(2);
    second.restore(&path).unwrap();
    second.fit(&inputs, &targets, &fit(2)).unwrap();
    assert_eq!(second.parameters().unwrap(), whole.parameters().unwrap());
    let scores = whole.scores(&inputs, &targets, &Evaluate { metrics: vec![Metric::Accuracy], ..Evaluate::default() });
    assert_eq!(scores.unwrap().metrics[0].0, "accuracy");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_run_records_how_it_went_and_is_gone_on_with() {
    let (x, y) = signs();
    let folder = folder("run");
    let device = Device::cpu();
    let fit = |epochs: usize| Fit { epochs, metrics: vec![Metric::Accuracy], validation_split: 0.2, ..Fit::default() };
    let mut run = Run::create(&folder, &serde_json::json!({ "units": 6 }), 3, &device).unwrap();
    let mut model = classifier(&device, Adam::default());
    model.fit_with_callbacks(&x, &y, &fit(2), &mut [&mut run]).unwrap();
    drop(run);
    assert_eq!(Run::create(&folder, &(), 0, &device).err().unwrap().kind(), ErrorKind::Argument);
    let mut again = Sequential::load(&device, folder.join("checkpoints/last.safetensors")).unwrap();
    let mut run = Run::resume(&folder).unwrap();
    again.fit_with_callbacks(&x, &y, &fit(1), &mut [&mut run]).unwrap();
    model.fit(&x, &y, &fit(1)).unwrap();
    assert_eq!(bits(&mut again), bits(&mut model));

    let records = Records::read(&folder).unwrap();
    assert_eq!(records.0.iter().map(|r| r.epoch).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(records.names(), ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"]);
    let csv = std::fs::read_to_string(folder.join("history.csv")).unwrap();
    assert!(csv.starts_with("epoch,loss,accuracy,val_loss") && csv.lines().count() == 4);
    let svg = std::fs::read_to_string(folder.join("history.svg")).unwrap();
    assert!(
        svg.starts_with("<svg")
            && svg.contains("val")
            && svg.contains("accuracy")
            && svg.matches("<polyline").count() >= 5
    );
    let read =
        |name: &str| serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(folder.join(name)).unwrap());
    assert_eq!(read("config.json").unwrap()["training"]["units"], 6);
    assert_eq!(read("config.json").unwrap()["seed"], 3);
    assert_eq!(read("environment.json").unwrap()["device"], device.name());
    let events = std::fs::read_dir(&folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 2, "one a process");
    // An epoch that is trained again takes the place of what was recorded of it.
    let mut run = Run::resume(&folder).unwrap();
    let mut second = records.0[1].clone();
    second.values[0].1 = 9.0;
    run.record(second.clone()).unwrap();
    assert_eq!(Records::read(&folder).unwrap().0, [records.0[0].clone(), second]);
    assert_eq!(
        Run::named(folder.parent().unwrap(), folder.file_name().unwrap().to_str().unwrap()).0,
        Some(folder.clone())
    );
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(Records::read(&folder).unwrap_err().kind(), ErrorKind::File);
}
