//! How far training is: a bar where standard error is a terminal, one line an epoch elsewhere.

use crate::evaluate::measured;
use indicatif::{ProgressBar, ProgressStyle};
use mnemon::data::Level;
use mnemon::train::Progress;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between looks at the loss, each of which waits for the device.
const REFRESH: Duration = Duration::from_secs(1);

pub struct Display {
    bar: Option<ProgressBar>,
    refreshed: Instant,
    /// Where the clock was started: when, and after how many tokens.
    begin: (Instant, u64),
    /// Characters a second when the clock was stopped.
    speed: f64,
}

impl Display {
    pub fn new(progress: &Progress) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(u64::from(progress.steps)).with_position(u64::from(progress.step));
            let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {eta} left");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self { bar, refreshed: now, begin: (now, progress.tokens), speed: 0.0 }
    }

    /// Whether there is a bar.
    pub fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Whether it is time for [`Self::update`].
    pub fn due(&self) -> bool {
        self.bar.is_some() && self.refreshed.elapsed() >= REFRESH
    }

    /// Tokens a second when the clock was stopped.
    pub fn speed(&self) -> f64 {
        self.speed
    }

    fn measure(&self, progress: &Progress) -> f64 {
        let tokens = progress.tokens.saturating_sub(self.begin.1);
        tokens as f64 / self.begin.0.elapsed().as_secs_f64().max(1e-9)
    }

    pub fn update(&mut self, progress: &Progress, loss: f32) {
        let speed = self.measure(progress);
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(progress.step));
            bar.set_message(format!("epoch {}/{} loss {loss:.4} tok/s {speed:.0}", progress.epoch, progress.epochs));
        }
        self.refreshed = Instant::now();
    }

    /// Ends the measuring of tokens a second, before what is not training.
    pub fn stop_clock(&mut self, progress: &Progress) {
        self.speed = self.measure(progress);
    }

    pub fn start_clock(&mut self, progress: &Progress) {
        self.begin = (Instant::now(), progress.tokens);
    }

    /// Shows what an epoch came to: mean loss and validation loss in nats, and the latter in bits a character or byte, or as the
    /// perplexity of words and tokens.
    pub fn epoch(&mut self, progress: &Progress, loss: f32, validation: Option<f32>, level: Level) {
        let shown = |v: f32| match (level, measured(level, v).1) {
            (Level::Words | Level::Tokens, perplexity) => format!("val_ppl {perplexity:.2}"),
            (_, bits) => format!("val_bpc {bits:.3}"),
        };
        let validation = validation.map(|v| format!(" val_loss {v:.4} {}", shown(v))).unwrap_or_default();
        let (epoch, epochs, speed) = (progress.epoch, progress.epochs, self.speed);
        self.print(&format!("epoch {epoch}/{epochs} loss {loss:.4}{validation} tok/s {speed:.0}"));
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(progress.step));
        }
    }

    /// Shows lines above the bar.
    pub fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
