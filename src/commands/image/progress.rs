//! How far a fetch or an import is: bars on a terminal, else a line for each layer, nothing when that is asked for.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use podvm_image::{Event, Progress};
use podvm_pod::manifest::ByteSize;

const LAYER: &str = "{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
const TOTAL: &str = "total        {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
/// Above so many layers, only the total is shown.
const MOST_BARS: usize = 12;

/// Watches a fetch or an import, and tells it on standard error.
pub enum Watch {
    /// Says nothing.
    Silent,
    /// A line for each layer.
    Lines(Mutex<Lines>),
    /// A bar for each layer that is worked on.
    Bars(Box<Mutex<Bars>>),
}

/// The state of [`Watch::Lines`].
#[derive(Default)]
pub struct Lines {
    layers: usize,
    done: usize,
    begun: HashMap<usize, (Instant, u64)>,
}

/// The state of [`Watch::Bars`].
pub struct Bars {
    all: MultiProgress,
    total: Option<ProgressBar>,
    layers: HashMap<usize, ProgressBar>,
}

impl Watch {
    /// What suits the place that standard error goes to.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars(Box::new(Mutex::new(Bars { all: MultiProgress::new(), total: None, layers: HashMap::new() })))
        } else {
            Self::Lines(Mutex::default())
        }
    }
}

/// Bars are gone when it is over, so that what is printed next stands alone.
impl Drop for Watch {
    fn drop(&mut self) {
        if let Self::Bars(bars) = self {
            // Without a terminal there is nothing to be cleared.
            let _ = bars.get_mut().unwrap_or_else(PoisonError::into_inner).all.clear();
        }
    }
}

impl Progress for Watch {
    fn event(&self, event: Event) {
        match self {
            Self::Silent => {}
            Self::Lines(lines) => {
                if let Some(line) = lines.lock().unwrap_or_else(PoisonError::into_inner).line(event) {
                    eprintln!("{line}");
                }
            }
            Self::Bars(bars) => bars.lock().unwrap_or_else(PoisonError::into_inner).show(event),
        }
    }
}

impl Lines {
    fn line(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Begin { layers, bytes } => {
                self.layers = layers;
                let word = if layers == 1 { "layer" } else { "layers" };
                Some(format!("{layers} {word}, {}", ByteSize(bytes)))
            }
            Event::Present { bytes, .. } => {
                self.done += 1;
                Some(format!("layer {} of {}: {}, already stored", self.done, self.layers, ByteSize(bytes)))
            }
            Event::Start { layer, bytes, .. } => {
                self.begun.insert(layer, (Instant::now(), bytes));
                None
            }
            Event::Read { .. } => None,
            Event::Stored { layer, .. } => {
                self.done += 1;
                let (begun, bytes) = self.begun.remove(&layer)?;
                let seconds = begun.elapsed().as_secs_f64();
                Some(format!("layer {} of {}: {} in {seconds:.1} s", self.done, self.layers, ByteSize(bytes)))
            }
        }
    }
}

impl Bars {
    fn show(&mut self, event: Event) {
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        match event {
            Event::Begin { bytes, .. } => {
                self.total = Some(self.all.add(ProgressBar::new(bytes).with_style(style(TOTAL))));
            }
            Event::Present { bytes, .. } => self.add_to_total(bytes),
            Event::Start { layer, diff_id, bytes } if self.layers.len() < MOST_BARS => {
                let bar = ProgressBar::new(bytes).with_style(style(LAYER)).with_prefix(diff_id.short());
                let place = self.layers.len();
                self.layers.insert(layer, self.all.insert(place, bar));
            }
            Event::Start { .. } => {}
            Event::Read { layer, bytes } => {
                if let Some(bar) = self.layers.get(&layer) {
                    bar.inc(bytes);
                }
                self.add_to_total(bytes);
            }
            Event::Stored { layer, .. } => {
                if let Some(bar) = self.layers.get(&layer) {
                    bar.finish();
                }
            }
        }
    }

    fn add_to_total(&self, bytes: u64) {
        if let Some(total) = &self.total {
            total.inc(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use podvm_image::Digest;

    use super::*;

    #[test]
    fn each_layer_has_one_line() {
        let mut lines = Lines::default();
        let diff_id = Digest::of(b"x");
        assert_eq!(lines.line(Event::Begin { layers: 2, bytes: 2 << 20 }).unwrap(), "2 layers, 2 MiB");
        assert_eq!(
            lines.line(Event::Present { layer: 0, bytes: 1 << 20 }).unwrap(),
            "layer 1 of 2: 1 MiB, already stored"
        );
        assert_eq!(lines.line(Event::Start { layer: 1, diff_id, bytes: 1 << 20 }), None);
        assert_eq!(lines.line(Event::Read { layer: 1, bytes: 1 << 20 }), None);
        let stored = lines.line(Event::Stored { layer: 1, diff_id }).unwrap();
        assert!(stored.starts_with("layer 2 of 2: 1 MiB in "), "{stored}");
    }

    #[test]
    fn the_templates_are_sound() {
        for template in [LAYER, TOTAL] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
