//! Character language models: training, resuming, generating, bad input.

mod common;

use mnemon::data::Vocabulary;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::optim::{Adam, Clipping, Optimizer, Schedule};
use mnemon::params::random::Random;
use mnemon::train::{Generator, LanguageConfig, LanguageModel, TrainOptions, Trainer};
use std::path::PathBuf;

fn text() -> String {
    "the cat sat on the mat; the dog ran to the cat. ".repeat(12)
}

fn file(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mnemon-language-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn tokens() -> (Vec<u32>, Vec<u32>) {
    let all = Vocabulary::of(&text()).unwrap().encode(&text()).unwrap();
    (all[..500].to_vec(), all[500..].to_vec())
}

/// 4 streams of 124 characters: 7 windows an epoch, the last of 4 characters.
fn adam(learning_rate: f64, decay: f64, clip: f32) -> Optimizer {
    let falling = Schedule::PerEpoch(Box::new(Schedule::Step { every: 1, factor: decay }));
    Optimizer::from(Adam::pytorch().learning_rate(learning_rate)).clip(Clipping::GlobalNorm(clip)).schedule(falling)
}

fn options() -> TrainOptions {
    TrainOptions { batch: 4, sequence: 20, epochs: 3, steps: None, optimizer: adam(1e-2, 0.9, 1.0), seed: 7 }
}

fn model(device: &Device) -> LanguageModel {
    let config =
        LanguageConfig { layers: 2, hidden: 17, embedding: 6, dropout: 0.3, seed: 1, ..LanguageConfig::default() };
    LanguageModel::new(device, &config, Vocabulary::of(&text()).unwrap()).unwrap()
}

fn trainer(device: &Device, options: TrainOptions) -> Trainer {
    let (train, valid) = tokens();
    Trainer::new(model(device), train, valid, options).unwrap()
}

fn bits(trainer: &mut Trainer) -> Vec<u32> {
    let model = trainer.model().model();
    let names: Vec<String> = model.parameters().into_iter().map(|p| p.name).collect();
    let tensors = names.iter().map(|n| model.parameter(n).unwrap());
    tensors.flat_map(|t| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

#[test]
fn the_loss_falls_on_every_device() {
    for device in common::devices() {
        let mut trainer = trainer(&device, TrainOptions { epochs: 12, optimizer: adam(1e-2, 1.0, 5.0), ..options() });
        let before = trainer.validate().unwrap().unwrap();
        let mut losses = Vec::new();
        while !trainer.finished() {
            trainer.step().unwrap();
            if trainer.end_of_epoch() {
                losses.push(trainer.loss_so_far().unwrap());
            }
        }
        assert_eq!(losses.len(), 12);
        let progress = trainer.progress();
        assert_eq!((progress.step, progress.epoch, progress.window, progress.windows), (84, 12, 7, 7));
        assert_eq!(progress.tokens, 12 * 4 * 124);
        let after = trainer.validate().unwrap().unwrap();
        assert!(after < 0.7 * before && losses[11] < 0.8 * losses[0], "{device:?}: {before} {after} {losses:?}");
    }
}

/// The device is lost in the middle of training, and again; what is opened again goes on, and nothing is different.
#[test]
fn a_lost_device_changes_nothing() {
    for device in common::gpus() {
        let mut whole = trainer(&device, options());
        let mut other = trainer(&device.clone().reopen().unwrap(), options());
        let lose = |trainer: &mut Trainer| trainer.model().model().device().lose();
        while !whole.finished() {
            let step = other.progress().step;
            if step == 3 {
                lose(&mut other);
            }
            whole.step().unwrap();
            other.step().unwrap();
            assert_eq!(other.progress(), whole.progress());
            if step == 12 {
                lose(&mut other);
                assert_eq!(other.validate().unwrap(), whole.validate().unwrap());
            }
        }
        assert_eq!(other.loss_so_far().unwrap(), whole.loss_so_far().unwrap());
        assert_eq!(bits(&mut other), bits(&mut whole), "{device:?}");
        // Lost again and again, without a snapshot between, it is gone for good; where training took long there may have been one.
        for _ in 0..3 {
            lose(&mut other);
            let (got, wanted) = (other.validate().unwrap().unwrap(), whole.validate().unwrap().unwrap());
            assert!((got - wanted).abs() < 1e-4, "{got} {wanted}");
        }
        assert_eq!(other.model().model().device().label(), "cpu");
        other.checkpoint(file("lost.safetensors")).unwrap();
    }
}

#[test]
fn training_resumes_bit_for_bit_in_the_middle_of_an_epoch() {
    let path = file("resume.safetensors");
    let (train, valid) = tokens();
    for device in common::devices() {
        let mut whole = trainer(&device, options());
        while !whole.finished() {
            whole.step().unwrap();
        }
        for cut in [0, 3, 7, 9] {
            let mut first = trainer(&device, options());
            (0..cut).for_each(|_| first.step().unwrap());
            // Neither validating nor generating may disturb what is carried.
            first.validate().unwrap();
            Generator::new(first.model()).unwrap().feed("the cat").unwrap();
            first.checkpoint(&path).unwrap();
            let mut resumed = Trainer::resume(&device, &path, train.clone(), valid.clone()).unwrap();
            assert_eq!(resumed.progress(), first.progress());
            while !resumed.finished() {
                resumed.step().unwrap();
            }
            assert_eq!(bits(&mut resumed), bits(&mut whole), "{device:?} cut at {cut}");
            assert_eq!(resumed.loss_so_far().unwrap(), whole.loss_so_far().unwrap());
            assert_eq!(resumed.validate().unwrap(), whole.validate().unwrap());
        }
    }
}

#[test]
fn limits_count_steps() {
    let mut trainer = trainer(&Device::cpu(), TrainOptions { steps: Some(2), ..options() });
    trainer.step().unwrap();
    assert!(!trainer.finished());
    trainer.step().unwrap();
    assert!(trainer.finished());
    trainer.set_limits(1, None);
    assert!(!trainer.finished() && trainer.progress().steps == 7);
}

#[test]
fn a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state() {
    let path = file("diverged.safetensors");
    for device in common::devices() {
        let mut diverging = trainer(&device, TrainOptions { optimizer: adam(1e38, 0.9, 1.0), ..options() });
        let mut once = trainer(&device, TrainOptions { optimizer: adam(1e38, 0.9, 1.0), ..options() });
        once.step().unwrap();
        let error = (0..100).find_map(|_| diverging.step().err()).unwrap();
        assert!(error.kind() == ErrorKind::NotFinite && error.to_string().contains("at step 2;"), "{error}");
        assert_eq!(diverging.progress().step, 1);
        assert_eq!(diverging.step().unwrap_err().kind(), ErrorKind::NotFinite);
        assert_eq!(bits(&mut diverging), bits(&mut once));
        diverging.checkpoint(&path).unwrap();
        let (train, valid) = tokens();
        let mut resumed = Trainer::resume(&device, &path, train, valid).unwrap();
        assert_eq!(bits(&mut resumed), bits(&mut once));
    }
}

#[test]
fn generation_streams_known_characters_and_repeats_with_its_seed() {
    let mut model = model(&Device::cpu());
    let mut generate = |temperature, top_k| -> String {
        let mut random = Random::new(3, 1 << 33);
        let mut generator = Generator::new(&mut model).unwrap();
        generator.feed("the ").unwrap();
        let tokens: Vec<u32> = (0..40).map(|_| generator.next(temperature, top_k, &mut random).unwrap()).collect();
        model.vocabulary().decode(&tokens).unwrap()
    };
    let text = generate(1.0, 0);
    assert_eq!(text, generate(1.0, 0));
    assert_eq!(generate(0.0, 0), generate(2.0, 1), "the likeliest, either way");
    let mut generator = Generator::new(&mut model).unwrap();
    let error = generator.feed("the zoo").unwrap_err();
    assert!(error.kind() == ErrorKind::Data && error.to_string().contains("'z'"), "{error}");
    assert!(generator.next(f32::NAN, 0, &mut Random::new(0, 0)).is_err());
    assert!(generator.next(1.0, 0, &mut Random::new(0, 0)).is_ok(), "without a prompt");
}

#[test]
fn texts_that_are_too_short_say_what_is_needed() {
    let (train, _) = tokens();
    let new = |train: Vec<u32>| Trainer::new(model(&Device::cpu()), train, Vec::new(), options());
    for short in [vec![], vec![0; 1], train[..80].to_vec()] {
        let error = new(short).err().unwrap();
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains("at least 81"), "{error}");
    }
    let mut trainer = new(train[..81].to_vec()).unwrap();
    trainer.step().unwrap();
    assert!(trainer.end_of_epoch() && trainer.validate().unwrap().is_none());
    let options = TrainOptions { batch: 0, ..options() };
    assert!(Trainer::new(model(&Device::cpu()), train.clone(), vec![], options).is_err());
    let options = TrainOptions { optimizer: adam(1e-2, 0.9, -1.0), ..self::options() };
    assert!(Trainer::new(model(&Device::cpu()), train, vec![], options).is_err());
}

#[test]
fn files_that_do_not_fit_are_refused_and_a_failing_save_harms_nothing() {
    let device = Device::cpu();
    let path = file("fit.safetensors");
    let (train, valid) = tokens();
    let mut trainer = trainer(&device, options());
    trainer.step().unwrap();
    trainer.checkpoint(&path).unwrap();
    let saved = std::fs::read(&path).unwrap();

    assert_eq!(LanguageModel::vocabulary_of(&path).unwrap(), Vocabulary::of(&text()).unwrap());
    let loaded = LanguageModel::load(&device, &path).unwrap();
    assert_eq!(loaded.config().hidden, 17);
    let error = Trainer::resume(&device, &path, valid.repeat(5), valid.clone()).err().unwrap();
    assert!(error.to_string().contains("not the one that training began with"), "{error}");

    for length in [0, 7, 100, saved.len() - 3] {
        std::fs::write(&path, &saved[..length]).unwrap();
        let error = Trainer::resume(&device, &path, train.clone(), valid.clone()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::File, "{length}: {error}");
    }
    std::fs::write(&path, &saved).unwrap();
    let error = trainer.checkpoint(path.join("no").join("folder")).unwrap_err();
    assert!(error.kind() == ErrorKind::File, "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), saved);

    // A model without training, and one that is no language model.
    trainer.model().save(&path).unwrap();
    assert!(Trainer::resume(&device, &path, train.clone(), valid.clone()).is_err());
    trainer.model().model().save(&path).unwrap();
    let error = LanguageModel::load(&device, &path).err().unwrap();
    assert!(error.to_string().contains("vocabulary"), "{error}");
}
