//! The working memory: what it may see, what it is worth, how it is carried, fitted, trained and explained.

mod common;

use common::devices;
use mnemon::data::{Level, Vocabulary};
use mnemon::device::Device;
use mnemon::graph::{Graph, N};
use mnemon::nn::{
    Activation, Dense, Embedding, GraphOptions, Input, Lstm, Mixture, Network, Port, Sequential, WorkingMemory,
};
use mnemon::optim::{Adam, Clipping, Optimizer};
use mnemon::params::random::Random;
use mnemon::params::{DType, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use mnemon::streams::{StreamOptions, StreamState, Streams};
use mnemon::train::{
    Fit, Generator, LanguageConfig, LanguageModel, Loss, MixtureKind, Model, Named, TrainOptions, Trainer,
};

const WORDS: usize = 23;

/// The same words in the same order, over and over, with a stray one here and there.
fn text(len: usize) -> Vec<u32> {
    let mut random = Random::new(3, 0);
    let once: Vec<u32> = (0..40).map(|_| random.below(WORDS as u32)).collect();
    (0..len).map(|at| if at % 37 == 5 { random.below(WORDS as u32) } else { once[at % once.len()] }).collect()
}

/// Passages of 20 words at random, each read four times: what comes next can be remembered, not learnt.
fn passages(len: usize) -> Vec<u32> {
    let mut random = Random::new(6, 0);
    let mut all = Vec::new();
    while all.len() < len {
        let once: Vec<u32> = (0..20).map(|_| random.below(WORDS as u32)).collect();
        (0..4).for_each(|_| all.extend(&once));
    }
    all
}

fn mixtures() -> [WorkingMemory; 3] {
    let global = WorkingMemory::new(50).mixture(Mixture::Global { theta: 12.0, alpha: -8.0 });
    let linear = WorkingMemory::new(50).mixture(Mixture::Linear { theta: 12.0, lambda: 0.6 });
    [linear, global, WorkingMemory::pointer(50)].map(|memory| memory.steps(200))
}

/// An untrained model over words, whose states still tell contexts apart; `kept` are what the memory takes for what was read, if not
/// the input.
fn network(memory: Option<WorkingMemory>, kept: bool) -> Network {
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let e = network.add(Embedding::new(WORDS, 9), &[x]).unwrap();
    let h = network.add(Lstm::new(17).return_sequences(true).stateful(true), &e).unwrap()[0];
    let logits = network.add(Dense::new(WORDS), &[h]).unwrap()[0];
    let mut read: Port = x;
    if kept {
        read = network.input("kept", Input::Tokens);
        network.align(read, x).unwrap();
    }
    let y = memory.map_or(logits, |memory| network.add(memory, &[h, logits, read]).unwrap()[0]);
    network.output("y", y);
    network
}

fn parameters(network: &Network) -> Named {
    let mut random = Random::new(5, 1);
    let mut all = Named::new();
    for spec in network.parameters().unwrap() {
        // The state tells what was just read, and forgets.
        let scale = if spec.name.contains("weight_hh") { 0.2 } else { 1.0 };
        let values = (0..spec.shape.iter().product()).map(|_| scale * random.normal() as f32).collect();
        all.insert(spec.name, Tensor::new(&spec.shape, values).unwrap());
    }
    all
}

fn tokens(words: &[u32]) -> Tensor {
    Tensor::from_u32(&[1, words.len()], words.to_vec()).unwrap()
}

/// log p of every word at every step.
fn distributions(model: &mut Model, words: &[u32]) -> Vec<f32> {
    let inputs = Named::from([("x".to_string(), tokens(words))]);
    model.run(&inputs).unwrap().remove("y").unwrap().into_f32s().unwrap()
}

fn model(device: &Device, memory: Option<WorkingMemory>) -> Model {
    let network = network(memory, false);
    Model::new(device, &network, &parameters(&network)).unwrap()
}

/// Mean loss of a text by the program that looks for its words alone.
fn loss(device: &Device, network: &Network, inputs: &[(&str, &[u32])], targets: &[u32]) -> f32 {
    let mut graph = Graph::new();
    let built = network.build(&mut graph, GraphOptions::default()).unwrap();
    let y = graph.input("targets", [N], DType::U32).unwrap();
    let loss = built.cross_entropy(&mut graph, built.outputs[0].0, y, None, None).unwrap();
    graph.output("loss", loss.mean).unwrap();
    built.states.into_iter().try_for_each(|(state, new)| graph.update(state, new)).unwrap();
    let batch = Batch::dense(targets.len(), 1).unwrap();
    let mut session = device.session().unwrap();
    for (name, tensor) in parameters(network) {
        session.set(&name, &tensor).unwrap();
    }
    let mut program = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
    let given = inputs.iter().copied().chain([("targets", targets)]);
    let given: Vec<(&str, Tensor)> =
        given.map(|(name, words)| (name, Tensor::from_u32(&[words.len()], words.to_vec()).unwrap())).collect();
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (*name, tensor)).collect();
    session.run(&mut program, &batch, &given).unwrap();
    session.output(&program, "loss").unwrap().f32s().unwrap()[0]
}

#[test]
fn what_is_said_depends_on_nothing_that_was_not_read() {
    const FROM: usize = 77;
    let words = text(120);
    let mut others = words.clone();
    others[FROM..].iter_mut().for_each(|word| *word = (*word + 1) % WORDS as u32);
    for device in devices() {
        for memory in mixtures() {
            let y = distributions(&mut model(&device, Some(memory)), &words);
            let other = distributions(&mut model(&device, Some(memory)), &others);
            assert_eq!(y[..FROM * WORDS], other[..FROM * WORDS], "{device:?} {memory:?}");
            assert_ne!(y[FROM * WORDS..], other[FROM * WORDS..], "what is read now counts");
        }
    }
}

#[test]
fn every_distribution_sums_to_one_and_the_loss_is_its_own() {
    let words = text(120);
    let (read, targets) = (&words[..119], &words[1..]);
    for device in devices() {
        for memory in mixtures() {
            let y = distributions(&mut model(&device, Some(memory)), read);
            for (at, row) in y.chunks(WORDS).enumerate() {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{device:?} {memory:?} {at}: {sum}");
            }
            let told = y.chunks(WORDS).zip(targets).map(|(row, &word)| -f64::from(row[word as usize]));
            let mean = told.sum::<f64>() / targets.len() as f64;
            let loss = f64::from(loss(&device, &network(Some(memory), false), &[("x", read)], targets));
            // Two ways to add up the same 50 exponentials in floats.
            assert!((loss - mean).abs() < 1e-5, "{device:?} {memory:?}: {loss} {mean}");
        }
    }
}

#[test]
fn a_memory_is_worth_much_and_a_shuffled_one_nothing() {
    let words = text(200);
    let (read, targets) = (&words[..199], &words[1..]);
    let mut shuffled = read.to_vec();
    let mut random = Random::new(8, 2);
    (1..shuffled.len()).for_each(|at| shuffled.swap(at, random.below(at as u32 + 1) as usize));
    for device in devices() {
        let alone = loss(&device, &network(None, false), &[("x", read)], targets);
        for memory in &mixtures()[..2] {
            let network = network(Some(*memory), true);
            let with = loss(&device, &network, &[("x", read), ("kept", read)], targets);
            let without = loss(&device, &network, &[("x", read), ("kept", &shuffled)], targets);
            assert!(with < 0.85 * alone, "{device:?} {memory:?}: {with} {alone}");
            assert!(without > 0.95 * alone, "{device:?} {memory:?}: {without} {alone}");
        }
    }
}

/// On the processor a step's bits do not depend on how its sequence was cut into runs, nor on the turns of the ring; on a GPU
/// kernels are chosen for the sizes of a run.
#[test]
fn runs_go_on_from_each_other() {
    let words = text(160);
    for device in devices() {
        for memory in mixtures() {
            let whole = distributions(&mut model(&device, Some(memory)), &words);
            let mut parts = model(&device, Some(memory));
            let mut y = Vec::new();
            for some in [&words[..31], &words[31..32], &words[32..100], &words[100..]] {
                y.extend(distributions(&mut parts, some));
            }
            if device.label() == "cpu" {
                assert_eq!(y, whole, "{memory:?}");
            }
            let far = y.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{device:?} {memory:?}: {far}");
        }
    }
}

#[test]
fn a_sequence_may_be_longer_than_a_float_counts() {
    let memory = mixtures()[0];
    let (places, words) = (memory.op().places, text(430));
    for device in devices() {
        let network = network(Some(memory), false);
        let mut graph = Graph::new();
        let built = network.build(&mut graph, GraphOptions::default()).unwrap();
        graph.output("y", built.outputs[0].0).unwrap();
        built.states.into_iter().try_for_each(|(state, new)| graph.update(state, new)).unwrap();
        let batch = Batch::dense(10, 1).unwrap();
        let runs = |turns: usize| {
            let mut session = device.session().unwrap();
            for (name, tensor) in parameters(&network) {
                session.set(&name, &tensor).unwrap();
            }
            let mut program = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
            let mut all = Vec::new();
            for (run, words) in words.chunks(10).enumerate() {
                if run == 10 {
                    let position = session.get("working_memory.position").unwrap().into_f32s().unwrap()[0];
                    assert_eq!(position, 100.0);
                    let far = position + (turns * places) as f32;
                    session.set("working_memory.position", &Tensor::new(&[1, 1], vec![far]).unwrap()).unwrap();
                }
                let x = Tensor::from_u32(&[10], words.to_vec()).unwrap();
                session.run(&mut program, &batch, &[("x", &x)]).unwrap();
                all.extend(session.output(&program, "y").unwrap().into_f32s().unwrap());
            }
            (all, session.get("working_memory.position").unwrap().into_f32s().unwrap()[0])
        };
        let (near, far) = (runs(0), runs((1 << 23) / places - 1));
        assert_eq!(near.0, far.0, "{device:?}");
        assert!(near.1 == 430.0 && far.1 < 1000.0, "{} {}", near.1, far.1);
    }
}

#[test]
fn streams_carry_their_memories_and_keep_them() {
    let memory = mixtures()[0].steps(64);
    let words = [text(150), text(150).into_iter().rev().collect::<Vec<u32>>()];
    for device in devices() {
        let wanted: Vec<Vec<f32>> = words
            .iter()
            .map(|words| {
                let mut model = model(&device, Some(memory));
                words.chunks(60).flat_map(|some| distributions(&mut model, some)).collect()
            })
            .collect();
        let network = network(Some(memory), false);
        let options = StreamOptions { streams: 3, sequences: 3, steps: 16, ..StreamOptions::default() };
        let open = || Streams::open(&device, &network, parameters(&network), options.clone()).unwrap();
        let streams = open();
        let held = [streams.stream().unwrap(), streams.stream().unwrap()];
        let mut got = [Vec::new(), Vec::new()];
        let push = |stream: &mnemon::streams::Stream, some: &[u32]| {
            let x = Tensor::from_u32(&[some.len()], some.to_vec()).unwrap();
            stream.run(&x).unwrap().into_f32s().unwrap()
        };
        for at in (0..100).step_by(20) {
            for ((stream, words), got) in held.iter().zip(&words).zip(&mut got) {
                got.extend(push(stream, &words[at..at + 20]));
            }
        }
        let mut wrong = held[0].save().unwrap();
        wrong.values.insert("working_memory.position".into(), Tensor::new(&[1], vec![-1.5]).unwrap());
        assert!(streams.restore(&wrong).err().unwrap().to_string().contains("a count up to"));
        // One goes on in another process, after a way through a file; the other as a fork of itself, where a third has been.
        drop(streams.stream().unwrap());
        let state = StreamState::from_tensors(held[0].save().unwrap().into_tensors().unwrap()).unwrap();
        assert_eq!(state.values["working_memory.ring"].len(), memory.steps(16).op().len(17));
        let elsewhere = open();
        got[0].extend(push(&elsewhere.restore(&state).unwrap(), &words[0][100..]));
        got[1].extend(push(&held[1].fork().unwrap(), &words[1][100..]));
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_eq!(got.len(), wanted.len());
            if device.label() == "cpu" {
                assert_eq!(got, wanted);
            }
            let far = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{device:?}: {far}");
        }
    }
}

fn words() -> Vocabulary {
    let all: Vec<String> = (0..WORDS).map(|n| format!("w{n}")).collect();
    Vocabulary::at(Level::Words, &all.join(" "), 1).unwrap()
}

fn language_model(device: &Device) -> LanguageModel {
    let config = LanguageConfig { layers: 1, hidden: 16, embedding: 16, seed: 4, ..LanguageConfig::default() };
    LanguageModel::new(device, &config, words()).unwrap()
}

fn file(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("mnemon-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

#[test]
fn a_memory_is_fitted_and_kept_with_the_model() {
    let (words, path) = (text(700), file("fitted.safetensors"));
    for device in devices().into_iter().skip(1) {
        for kind in [MixtureKind::Linear, MixtureKind::Global] {
            let mut model = language_model(&device);
            let alone = model.score(words.clone()).unwrap().0;
            model.save(&path).unwrap();
            let fitted = model.fit_memory(&words, 100, kind).unwrap();
            assert!((fitted.alone - f64::from(alone)).abs() < 1e-4 && fitted.tokens == 699, "{fitted:?} {alone}");
            assert!(fitted.loss < 0.7 * fitted.alone, "{device:?} {fitted:?}");
            model.save_fitted(&path).unwrap();
            let mut other = LanguageModel::load(&device, &path).unwrap();
            assert_eq!(other.score(words.clone()).unwrap().0, alone, "it is used where it is asked for");
            other.remember(100).unwrap();
            assert_eq!(other.memory(), Some(&fitted.memory));
            let with = f64::from(other.score(words.clone()).unwrap().0);
            assert!((with - fitted.loss).abs() < 1e-4, "{device:?} {with} {fitted:?}");
            other.save(&path).unwrap();
            assert_eq!(LanguageModel::load(&device, &path).unwrap().memory(), Some(&fitted.memory));
            let error = other.fit_memory(&words, 100, kind).unwrap_err().to_string();
            assert!(error.contains("a working memory of its own"), "{error}");
            // Another window has rings of another size, and each is as it would be in a model that had no other.
            other.remember(300).unwrap();
            let wide = other.score(words.clone()).unwrap().0;
            other.remember(100).unwrap();
            assert_eq!(f64::from(other.score(words.clone()).unwrap().0), with);
            other.set_memory(None).unwrap();
            assert_eq!(other.score(words.clone()).unwrap().0, alone);
            other.fit_memory(&words, 300, kind).unwrap();
            other.fit_memory(&words, 20, kind).unwrap();
            let mut fresh = LanguageModel::load(&device, &path).unwrap();
            fresh.remember(300).unwrap();
            assert_eq!(fresh.score(words.clone()).unwrap().0, wide);
        }
    }
}

#[test]
fn a_pointer_is_trained_and_resumes_to_the_same_bits() {
    let (all, path) = (passages(3200), file("pointer.safetensors"));
    let fast = Optimizer::from(Adam::pytorch().learning_rate(1e-2)).clip(Clipping::GlobalNorm(1.0));
    let options = TrainOptions { batch: 4, sequence: 15, epochs: 8, optimizer: fast, ..TrainOptions::default() };
    let (train, valid) = (all[..2400].to_vec(), all[2400..].to_vec());
    let begin = |device: &Device, pointer: bool| {
        let mut model = language_model(device);
        model.set_memory(pointer.then(|| WorkingMemory::pointer(60).steps(20))).unwrap();
        Trainer::new(model, train.clone(), valid.clone(), options.clone()).unwrap()
    };
    let finish = |trainer: &mut Trainer| {
        while !trainer.finished() {
            trainer.step().unwrap();
        }
        trainer.validate().unwrap().unwrap()
    };
    for device in devices().into_iter().skip(1) {
        let plain = finish(&mut begin(&device, false));
        let mut whole = begin(&device, true);
        let with = finish(&mut whole);
        assert!(with < 0.9 * plain, "{device:?}: {with} {plain}");
        let mut half = begin(&device, true);
        (0..77).for_each(|_| half.step().unwrap());
        half.checkpoint(&path).unwrap();
        let mut resumed = Trainer::resume(&device, &path, train.clone(), valid.clone()).unwrap();
        assert_eq!(finish(&mut resumed), with, "{device:?}");
        let bits = |trainer: &mut Trainer, name: &str| trainer.model().model().parameter(name).unwrap();
        for name in ["working_memory.weight", "working_memory.bias", "working_memory.sentinel", "lstm.weight_hh_l0"] {
            assert_eq!(bits(&mut resumed, name), bits(&mut whole, name), "{device:?} {name}");
        }
    }
}

#[test]
fn what_is_generated_is_explained() {
    let words = text(150);
    for device in devices() {
        let mut model = language_model(&device);
        let vocabulary = model.vocabulary().clone();
        model.set_memory(Some(mixtures()[0])).unwrap();
        let prompt = vocabulary.decode(&words).unwrap();
        let mut generator = Generator::new(&mut model).unwrap();
        generator = generator.explaining();
        generator.feed(&prompt).unwrap();
        assert!(generator.explain().is_none(), "nothing was drawn");
        let (mut random, mut of_memory) = (Random::new(2, 2), 0.0);
        for _ in 0..30 {
            // The last token has no next one yet; a step sees 50 that have.
            let before = generator.read_so_far().to_vec();
            let seen = &before[before.len() - 50..];
            let token = generator.next(1.0, 0, &mut random).unwrap();
            let explanation = generator.explain().unwrap().clone();
            assert!(explanation.probability > 0.0 && explanation.probability <= 1.0 + 1e-5);
            assert_eq!((explanation.token, generator.read_so_far().last()), (token, Some(&token)));
            let shares: f32 = explanation.remembered.iter().map(|r| r.share).sum();
            assert!((shares - explanation.memory).abs() < 1e-5 && shares < 1.0 + 1e-5, "{explanation:?}");
            assert_eq!(explanation.memory > 0.0, seen.contains(&token), "{explanation:?}");
            assert!(explanation.remembered.iter().all(|r| r.at >= before.len() - 50 && r.at < before.len()));
            for remembered in &explanation.remembered {
                assert_eq!(generator.read_so_far()[remembered.at], token);
            }
            of_memory += explanation.memory * 1.0 / 30.0;
        }
        assert!(of_memory > 0.3, "{device:?}: {of_memory}");
    }
}

#[test]
fn states_are_reset_and_stateless_memories_begin_empty() {
    let (words, memory) = (text(90), mixtures()[0]);
    for device in devices() {
        let mut kept = model(&device, Some(memory));
        let first = distributions(&mut kept, &words);
        assert_ne!(distributions(&mut kept, &words), first, "it remembers");
        kept.reset_states().unwrap();
        assert_eq!(distributions(&mut kept, &words), first, "{device:?}");
        // Without a state of its own it gives the same each time, and what one that begins gives.
        let mut network = network(None, false);
        network.nodes.iter_mut().for_each(|node| {
            if let mnemon::nn::Layer::Lstm(lstm) = &mut node.layer {
                lstm.stateful = false;
            }
        });
        let network = network.with_memory(Some(memory.stateful(false))).unwrap();
        let mut free = Model::new(&device, &network, &parameters(&network)).unwrap();
        assert_eq!(distributions(&mut free, &words), first, "{device:?}");
        assert_eq!(distributions(&mut free, &words), first, "{device:?}");
        // Two sequences of different lengths, each by itself.
        let mut both = words.clone();
        both.extend([&words[..40], &[0; 50]].concat());
        let inputs = Named::from([
            ("x".to_string(), Tensor::from_u32(&[2, 90], both).unwrap()),
            ("lengths".to_string(), Tensor::from_u32(&[2], vec![90, 40]).unwrap()),
        ]);
        let y = free.run(&inputs).unwrap().remove("y").unwrap().into_f32s().unwrap();
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far(&y[..90 * WORDS], &first) < 1e-4 && far(&y[90 * WORDS..130 * WORDS], &first[..40 * WORDS]) < 1e-4);
    }
}

#[test]
fn a_row_of_layers_has_a_memory_as_its_last() {
    let words = text(120);
    let x = ndarray::Array2::from_shape_fn((4, 20), |(s, t)| words[s * 20 + t] as f32);
    let y = ndarray::Array2::from_shape_fn((4, 20), |(s, t)| words[s * 20 + t + 1] as f32);
    for device in devices() {
        let mut model = Sequential::new(&device);
        model.add(Embedding::new(WORDS, 8)).add(Lstm::new(12).return_sequences(true)).add(Dense::new(WORDS));
        model.build(Input::Tokens).unwrap();
        model.compile(Adam::default(), Loss::CrossEntropy).unwrap();
        let fit = Fit { epochs: 2, batch_size: 4, shuffle: false, ..Fit::default() };
        model.fit(&x, &y, &fit).unwrap();
        let alone = model.evaluate(&x, &y).unwrap();
        let memory = mixtures()[0].stateful(false);
        model.set_memory(Some(memory)).unwrap();
        let with = model.evaluate(&x, &y).unwrap();
        let p = model.predict(&x).unwrap();
        let told: f32 = p.rows().into_iter().zip(&y).map(|(row, &word)| -row[word as usize]).sum::<f32>() / 80.0;
        assert!((told - with).abs() < 1e-5 && with != alone, "{device:?} {told} {with} {alone}");
        // It has no parameters: training goes on where it was.
        assert!(model.fit(&x, &y, &fit).unwrap().loss[0] < with + 0.1);
        model.set_memory(Some(WorkingMemory::pointer(30).stateful(false))).unwrap();
        assert_eq!(model.parameters().len(), 9);
        assert!(model.evaluate(&x, &y).unwrap_err().to_string().contains("compile"));
        model.set_memory(None).unwrap();
        assert!(model.memory().is_none() && model.parameters().len() == 6);
        model.set_memory(Some(mixtures()[1].stateful(false))).unwrap();
        model.compile(Adam::default(), Loss::CrossEntropy).unwrap();
        let error = model.fit(&x, &y, &fit).unwrap_err().to_string();
        assert!(error.contains("fitted to a model, not trained"), "{error}");
    }
}

#[test]
fn what_cannot_be_remembered_is_refused() {
    let device = Device::cpu();
    let long = WorkingMemory::new(10).steps(20);
    let steps = long.op().steps();
    let mut model = model(&device, Some(long));
    assert!(model.run(&Named::from([("x".to_string(), tokens(&text(steps)))])).is_ok());
    let error = model.run(&Named::from([("x".to_string(), tokens(&text(steps + 1)))])).unwrap_err().to_string();
    assert!(error.contains(&format!("at most {steps} steps, got {}", steps + 1)), "{error}");

    let plain = network(None, false);
    let refused = |memory: WorkingMemory| plain.with_memory(Some(memory)).unwrap_err().to_string();
    for (memory, wanted) in [
        (WorkingMemory::new(0), "the window must be in 1..="),
        (WorkingMemory::new(10).steps(0), "the steps of a run must be in 1..="),
        (
            WorkingMemory::new(10).mixture(Mixture::Linear { theta: 1.0, lambda: 1.0 }),
            "lambda must be in [0, 1), got 1",
        ),
        (
            WorkingMemory::new(10).mixture(Mixture::Linear { theta: -1.0, lambda: 0.1 }),
            "theta must be at least 0, got -1",
        ),
        (WorkingMemory::new(10).mixture(Mixture::Global { theta: 1.0, alpha: f32::NAN }), "alpha must be a number"),
    ] {
        let error = refused(memory);
        assert!(error.contains(wanted), "{error}");
    }
    let mut floats = Network::default();
    let x = floats.input("x", Input::Features(3));
    let h = floats.add(Lstm::new(4).return_sequences(true), &[x]).unwrap();
    floats.output("y", h[0]);
    let error = floats.with_memory(Some(WorkingMemory::new(10))).unwrap_err().to_string();
    assert!(error.contains("reads tokens by an LSTM"), "{error}");

    // Probabilities are no logits, and labels are no tokens.
    for (layer, wanted) in [
        (Dense::new(WORDS).activation(Activation::Softmax), "takes logits, got what a softmax gives"),
        (Dense::new(5), "logits of the tokens that are read, 23, got 5"),
    ] {
        let mut other = Network::default();
        let x = other.input("x", Input::Tokens);
        let e = other.add(Embedding::new(WORDS, 4), &[x]).unwrap();
        let h = other.add(Lstm::new(4).return_sequences(true), &e).unwrap();
        let y = other.add(layer, &h).unwrap();
        other.output("y", y[0]);
        let with = other.with_memory(Some(WorkingMemory::new(10))).unwrap();
        let error = with.build(&mut Graph::new(), GraphOptions::default()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }

    // There is nothing to remember in a memory that was taken away.
    let with = plain.with_memory(Some(WorkingMemory::new(10))).unwrap();
    assert!(with.memory().is_some());
    assert_eq!(with.with_memory(None).unwrap(), plain);
}
