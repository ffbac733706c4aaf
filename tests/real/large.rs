//! Two thousand small layers and one of 2 GiB: several are moved at once, in little memory.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::gigabytes::checkpoint;
use crate::place::Place;
use crate::registry::{Registry, stored_manifest};

const SMALL_LAYERS: u64 = 2000;
const LARGE_LAYER: u64 = 2 << 30;
/// In bytes.
const MEMORY: u64 = 128 << 20;
/// No push and no pull takes longer, on any machine: it is 15 s on a good one.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs kiln to its end, and gives the most memory that it had in use at once, in bytes.
fn peak_memory(place: &Place, words: &str) -> u64 {
    let begun = Instant::now();
    let mut run = place.start(&mut place.command(words));
    let status = format!("/proc/{}/status", run.id());
    let mut peak = 0;
    while !run.has_ended() {
        // Between its end and the next look there is nothing to be read.
        let status = fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            peak = line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10;
        }
        assert!(begun.elapsed() < PATIENCE, "{words}");
        sleep(Duration::from_millis(5));
    }
    run.wait().expect(0);
    peak
}

/// The most requests that were under way at once, as the registry's log has it: a line for each that ended, with how
/// long it took.
fn most_at_once(log: &str) -> usize {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split([' ', '"']).find(|word| !word.is_empty()).map(str::to_owned)
    };
    let mut moments = Vec::new();
    for line in log.lines().filter(|line| line.contains("msg=\"response completed\"")) {
        let (ended, took) = (field(line, "time=").unwrap(), field(line, "http.response.duration=").unwrap());
        let ended = seconds_of_day(&ended);
        moments.extend([(ended - seconds(&took), 1), (ended, -1)]);
    }
    moments.sort_by(|left, right| left.partial_cmp(right).unwrap());
    let (mut under_way, mut most) = (0_i32, 0);
    for (_, change) in moments {
        under_way += change;
        most = most.max(under_way);
    }
    most as usize
}

/// The time in `2026-11-24T14:15:18.128379636Z`.
fn seconds_of_day(time: &str) -> f64 {
    let parts = time.trim_end_matches('Z').split_once('T').unwrap().1.split(':');
    parts.fold(0.0, |seconds, part| seconds * 60.0 + part.parse::<f64>().unwrap())
}

/// A length of time as Go writes it: `1m3.5s`, `67.43ms`, `812.5µs`.
fn seconds(duration: &str) -> f64 {
    let mut rest = duration;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit = rest.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap();
        let end = rest[unit..].find(|character: char| character.is_ascii_digit()).map_or(rest.len(), |end| unit + end);
        let scale = match &rest[unit..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            "ns" => 1e-9,
            unit => panic!("{unit} in {duration}"),
        };
        seconds += rest[..unit].parse::<f64>().unwrap() * scale;
        rest = &rest[end..];
    }
    seconds
}

#[test]
fn lengths_of_time_are_read_as_go_writes_them() {
    assert_eq!(seconds("1m3.5s"), 63.5);
    assert_eq!((seconds("250ms"), seconds("500µs")), (0.25, 0.0005));
    assert_eq!(seconds_of_day("2026-11-24T14:15:18.5Z"), 51_318.5);
}

#[test]
fn two_thousand_layers_and_a_large_one_are_moved_at_once_and_in_little_memory() {
    let place = Place::new();
    checkpoint(&place.path("checkpoint"), (0..SMALL_LAYERS).map(|_| 256).chain([LARGE_LAYER]));
    place.kiln("create big:v1 checkpoint").expect(0);
    fs::remove_dir_all(place.path("checkpoint")).unwrap();
    let registry = Registry::plain();
    let remote = format!("{}/team/big:v1 --plain-http", registry.host());

    let pushing = peak_memory(&place, &format!("push big:v1 {remote}"));
    let log = registry.log();
    assert_eq!(registry.manifest("team/big", "v1").unwrap(), stored_manifest(&place, "big:v1", "store").1);
    assert_eq!(most_at_once(&log), 4, "pushing");

    // What is not read any more makes room for what is pulled.
    let digest = place.digest("show big:v1");
    fs::remove_dir_all(place.path("store")).unwrap();
    let pulling = peak_memory(&place, &format!("pull {remote} big:v1"));
    assert_eq!(place.digest("show big:v1"), digest);
    assert!(most_at_once(&registry.log()[log.len()..]) >= 4, "pulling");
    assert!((1..MEMORY).contains(&pushing) && (1..MEMORY).contains(&pulling), "{pushing} {pulling}");
}
