//! From events to what a person or a program sees: a bar on a terminal, a line now and then in a log, or
//! objects on standard output. A reporter that is dropped takes its bar away.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::output::{Printer, count, one_line, size};
use super::settings::{Display, Settings};
use crate::progress::{Event, Progress};

/// How long a log is silent between two lines about the same task.
const BETWEEN_LINES: Duration = Duration::from_secs(5);
/// How long it is between two objects about the same task.
const BETWEEN_OBJECTS: Duration = Duration::from_secs(1);

/// Shows the progress of one command.
#[derive(Debug)]
pub(super) struct Reporter(Arc<View>);

#[derive(Debug)]
struct View {
    display: Display,
    verbose: bool,
    printer: Arc<Printer>,
    bar: Option<ProgressBar>,
    /// Bytes of the current task that are done.
    done: AtomicU64,
    task: Mutex<Task>,
}

/// What is being done.
#[derive(Debug)]
struct Task {
    name: &'static str,
    bytes: u64,
    started: Instant,
    reported: Instant,
}

impl Reporter {
    pub(super) fn new(settings: &Settings, printer: Arc<Printer>) -> Self {
        let now = Instant::now();
        Self(Arc::new(View {
            display: settings.display,
            verbose: settings.verbose,
            printer,
            bar: (settings.display == Display::Bar).then(bar),
            done: AtomicU64::new(0),
            task: Mutex::new(Task { name: "", bytes: 0, started: now, reported: now }),
        }))
    }

    /// What a use case reports to.
    pub(super) fn progress(&self) -> Progress {
        let view = self.0.clone();
        Progress::new(move |event| view.receive(event))
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.set_style(style.progress_chars("=> ")),
        Err(_) => debug_assert!(false, "the template is fixed"),
    }
    bar
}

impl View {
    fn receive(&self, event: Event) {
        match event {
            Event::Started { task, blobs, bytes } => self.start(task, blobs, bytes),
            Event::Advanced { bytes } => self.advance(bytes),
            Event::Blob { name, digest, size: bytes, outcome } => match self.display {
                Display::Json => {
                    let blob =
                        json!({"event": "blob", "name": name, "digest": digest, "size": bytes, "outcome": outcome});
                    self.printer.object(&blob);
                }
                Display::Bar | Display::Lines if self.verbose => {
                    self.say(&format!("{outcome} {name} {digest} {}", size(bytes)));
                }
                _ => {}
            },
            Event::Note { message } if self.display == Display::Json => {
                self.printer.object(&json!({"event": "note", "message": message}));
            }
            Event::Note { message } => self.suspend(|| self.printer.note(&message)),
        }
    }

    fn start(&self, task: &'static str, blobs: u64, bytes: u64) {
        let now = Instant::now();
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) =
            Task { name: task, bytes, started: now, reported: now };
        self.done.store(0, Ordering::Relaxed);
        match (self.display, &self.bar) {
            (Display::Json, _) => {
                self.printer.object(&json!({"event": "started", "task": task, "blobs": blobs, "bytes": bytes}));
            }
            (Display::Lines, _) => self.say(&format!("{task}: {}, {}", count(blobs, "blob"), size(bytes))),
            (_, Some(bar)) => {
                bar.reset();
                bar.set_length(bytes);
                bar.set_message(task);
            }
            _ => {}
        }
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let pause = match self.display {
            Display::Lines => BETWEEN_LINES,
            Display::Json => BETWEEN_OBJECTS,
            Display::Bar | Display::Nothing => return,
        };
        // Whoever finds another thread reporting has nothing to add.
        let Ok(mut task) = self.task.try_lock() else { return };
        if task.reported.elapsed() < pause {
            return;
        }
        task.reported = Instant::now();
        if self.display == Display::Json {
            let progress = json!({"event": "progress", "task": task.name, "bytes": done, "total": task.bytes});
            self.printer.object(&progress);
        } else {
            self.say(&task.line(done, task.started.elapsed()));
        }
    }

    fn say(&self, line: &str) {
        self.suspend(|| self.printer.message(one_line(line)));
    }

    /// Takes the bar away while something else is written.
    fn suspend(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Task {
    /// How far it is after `elapsed`.
    fn line(&self, done: u64, elapsed: Duration) -> String {
        let mut line = format!("{}: {} of {}", self.name, size(done), size(self.bytes));
        let rate = done as f64 / elapsed.as_secs_f64();
        if rate.is_finite() && rate >= 1.0 {
            line.push_str(&format!(", {}/s", size(rate as u64)));
            let left = Duration::from_secs_f64(self.bytes.saturating_sub(done) as f64 / rate);
            line.push_str(&format!(", {} left", indicatif::FormattedDuration(left)));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_rate_and_the_time_left() {
        let now = Instant::now();
        let task = Task { name: "create", bytes: 4 << 30, started: now, reported: now };
        for (done, seconds, line) in [
            (0, 5, "create: 0 B of 4.00 GiB"),
            (1 << 30, 10, "create: 1.00 GiB of 4.00 GiB, 102.40 MiB/s, 00:00:30 left"),
            (4 << 30, 0, "create: 4.00 GiB of 4.00 GiB"),
            (5 << 30, 10, "create: 5.00 GiB of 4.00 GiB, 512.00 MiB/s, 00:00:00 left"),
        ] {
            assert_eq!(task.line(done, Duration::from_secs(seconds)), line);
        }
    }
}
