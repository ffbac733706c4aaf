//! What a pull promises: it goes on where one before it broke, asks for nothing that is there, fetches a large
//! layer as several ranges where the registry has them, and trusts nothing that it did not hash. The tests that
//! kill run their own program again as the victim.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of which have one")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kiln::copy::CopyReport;
use kiln::oci::{Descriptor, Manifest, MediaType};
use kiln::ops::transfer::{self, Access};
use kiln::registry::{Anonymous, Options as Transport};
use kiln::storage::{Body, ByteStream, Fetch as _, Push as _, Reading};
use kiln::store::Store;
use kiln::{ErrorKind, Event, Progress, Result, json};
use registry_fixtures::{Fault, Fixture, Options, Recorded, Trigger};
use tempfile::TempDir;

const VICTIM: &str = "KILN_TEST_VICTIM_PULL";
const REPOSITORY: &str = "team/model";
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// Less than what is fetched as several ranges.
const LAYER: u64 = 8 * MIB;
/// As much as is fetched as five.
const LARGE: u64 = 80 * MIB;
const CONCURRENCY: usize = 4;

// --- scenes -----------------------------------------------------------------------------------

struct Scene {
    registry: Fixture,
    place: TempDir,
    layers: Vec<Descriptor>,
}

/// Bytes in which no part is like another.
fn content(seed: u64, size: u64) -> Bytes {
    let words = (0..size / 8).map(|index| (index + 1).wrapping_mul(seed.wrapping_mul(2) + 0x9e37_79b9_7f4a_7c15));
    words.flat_map(|word| (word ^ (word >> 29)).to_le_bytes()).collect::<Vec<_>>().into()
}

impl Scene {
    /// A registry with one model, whose layers have these sizes.
    fn new(sizes: &[u64], options: Options) -> Self {
        let registry = Fixture::start_with(options);
        let layers = (0..).zip(sizes).map(|(seed, size)| content(seed, *size)).collect::<Vec<_>>();
        let layers = publish(&registry, &layers);
        Self { registry, place: TempDir::new().unwrap(), layers }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("store")
    }

    fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:v1", self.registry.host())
    }

    async fn pull(&self) -> Result<CopyReport> {
        self.pull_within(PATIENCE, &Progress::silent()).await
    }

    async fn pull_within(&self, idle_timeout: Duration, progress: &Progress) -> Result<CopyReport> {
        let access = access(idle_timeout);
        let store = Store::open(&self.root()).unwrap();
        let reference = self.reference().parse().unwrap();
        let pull = transfer::pull(&store, &reference, &reference, &access, progress);
        tokio::time::timeout(PATIENCE, pull).await.expect("an end in time")
    }

    /// That all layers are in the store, and nothing else is left of them.
    fn check(&self) {
        let store = Store::open(&self.root()).unwrap();
        for layer in &self.layers {
            assert_eq!(store.check(layer, &Progress::silent()).unwrap(), Ok(()), "{}", layer.digest);
        }
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// The files in `ingest/`.
    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(self.root().join("ingest")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.root().join("ingest").join(format!("{}.{suffix}", self.layers[0].digest.hex()))
    }

    /// Which bytes of a layer were asked for, in the order of the requests.
    fn asked(&self, layer: usize) -> Vec<Range<u64>> {
        self.requests(layer).iter().map(|request| range_of(request).unwrap_or(0..self.layers[layer].size)).collect()
    }

    fn requests(&self, layer: usize) -> Vec<Recorded> {
        requests(&self.registry, &self.layers[layer])
    }

    /// Puts what an earlier pull might have left of the first layer into the store.
    fn leave(&self, bytes: &[u8], record: &str) {
        drop(Store::open(&self.root()).unwrap());
        fs::write(self.file("partial"), bytes).unwrap();
        fs::write(self.file("ranges"), record).unwrap();
    }

    /// Starts a pull in a process of its own, which ends with the test at the latest.
    fn start_pull(&self) -> Victim {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "victim"])
            .env(VICTIM, format!("{} {}", self.reference(), self.root().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Victim(child.unwrap())
    }

    /// The first line of the record, and the lines behind it.
    fn record(&self) -> Option<(serde_json::Value, String)> {
        let text = fs::read_to_string(self.file("ranges")).ok()?;
        let (record, notes) = text.split_once('\n')?;
        Some((json::parse(record.as_bytes()).unwrap(), notes.to_owned()))
    }

    /// Pulls in a process of its own until the record speaks of exactly these ranges, and kills it.
    fn pull_until(&self, ranges: &[Range<u64>]) {
        let mut victim = self.start_pull();
        let record = || Some(self.record()?.0["ranges"].clone());
        let expected = serde_json::json!(ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>());
        wait_for(&format!("a record of {ranges:?}"), || record().as_ref() == Some(&expected));
        assert!(victim.0.try_wait().unwrap().is_none(), "the victim ended on its own");
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
    }
}

struct Victim(Child);

impl Victim {
    /// That it ends well.
    fn finish(mut self) {
        wait_for("the end of a pull", || self.0.try_wait().unwrap().is_some());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No test of its own: what [`Scene::start_pull`] runs.
#[test]
fn victim() {
    let Some(words) = env::var_os(VICTIM) else { return };
    let (reference, root) = words.to_str().unwrap().split_once(' ').unwrap();
    let (store, reference) = (Store::open(Path::new(root)).unwrap(), reference.parse().unwrap());
    let access = access(PATIENCE);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(transfer::pull(&store, &reference, &reference, &access, &Progress::silent())).unwrap();
}

fn access(idle_timeout: Duration) -> Access {
    let options = Transport {
        plain_http: true,
        concurrency: CONCURRENCY,
        idle_timeout,
        first_pause: Duration::from_millis(5),
        ..Transport::default()
    };
    Access { keychain: Arc::new(Anonymous), options }
}

/// Puts a model of these layers into the registry.
fn publish(registry: &Fixture, layers: &[Bytes]) -> Vec<Descriptor> {
    registry.put_blob(REPOSITORY, "{}");
    let described = layers.iter().map(|layer| {
        registry.put_blob(REPOSITORY, layer.clone());
        Descriptor::of(MediaType::OLLAMA_TENSOR, layer)
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config: Descriptor::of(MediaType::KILN_FILE, b"{}"),
        layers: described.collect(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    registry.put_manifest(REPOSITORY, "v1", MediaType::OCI_MANIFEST.as_str(), json::to_canonical(&manifest));
    manifest.layers
}

fn requests(registry: &Fixture, layer: &Descriptor) -> Vec<Recorded> {
    let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    registry.requests().into_iter().filter(|request| request.method == "GET" && request.path == path).collect()
}

fn range_of(request: &Recorded) -> Option<Range<u64>> {
    let (first, last) = request.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().unwrap()..last.parse::<u64>().unwrap() + 1)
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// That `asked` are `expected`, in whatever parts and order, and no byte twice.
fn assert_parts(mut asked: Vec<Range<u64>>, expected: &[Range<u64>]) {
    asked.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in &asked {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    assert_eq!(joined, expected, "{asked:?}");
}

fn stall(layer: &str, after: u64) -> (Trigger, Fault) {
    (Trigger::on("GET", layer), Fault::Stall { after: after as usize })
}

// --- going on ---------------------------------------------------------------------------------

#[tokio::test]
async fn a_killed_pull_costs_only_what_had_not_arrived() {
    for arrived in [1, 3, 5, 7] {
        let scene = Scene::new(&[LAYER], Options::default());
        let (trigger, fault) = stall(&scene.layers[0].digest.to_string(), arrived * MIB);
        scene.registry.inject(trigger, fault);
        scene.pull_until(&[0..arrived * MIB]);
        scene.registry.clear_requests();

        let advanced = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&advanced);
        let progress = Progress::new(move |event| {
            if let Event::Advanced { bytes } = event {
                seen.fetch_add(bytes, Ordering::Relaxed);
            }
        });
        let report = scene.pull_within(PATIENCE, &progress).await.unwrap();
        assert_eq!(scene.asked(0), [arrived * MIB..LAYER]);
        assert_eq!(report.bytes_transferred, LAYER - arrived * MIB);
        assert_eq!(advanced.load(Ordering::Relaxed), LAYER + 2, "what was there counts as done");
        scene.check();
    }
}

/// Long before the disk has it.
#[tokio::test]
async fn a_kill_costs_less_than_a_power_cut() {
    let scene = Scene::new(&[LAYER], Options::default());
    let (trigger, fault) = stall(&scene.layers[0].digest.to_string(), 3 * MIB);
    scene.registry.inject(trigger, fault);
    // What came is on disk within half a second; a test that comes too late for the notes looks again.
    let noted = (0..20).any(|_| {
        drop(fs::remove_dir_all(scene.root().join("ingest")));
        let mut victim = scene.start_pull();
        wait_for("a note", || scene.record().is_some());
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
        let (record, notes) = scene.record().unwrap();
        record["ranges"] == serde_json::json!([]) && !notes.is_empty()
    });
    assert!(noted);
    scene.registry.clear_requests();
    scene.pull().await.unwrap();
    let [Range { start, end: LAYER }] = scene.asked(0)[..] else { panic!("{:?}", scene.asked(0)) };
    assert!((MIB..=3 * MIB).contains(&start), "{start}");
    scene.check();
}

#[tokio::test]
async fn notes_count_until_the_system_starts_anew() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = |boot: &str| format!("{{\"boot\":\"{boot}\",\"ranges\":[[0,{MIB}]],\"size\":{LAYER}}}\n");
    let notes = format!("[{MIB},{}]\n[{},{}]\n", 2 * MIB, 4 * MIB, 5 * MIB);
    let (own, other) = (record(boot.trim()), record("an earlier one"));
    for (what, record, asked) in [
        ("notes of this run", format!("{own}{notes}"), vec![2 * MIB..4 * MIB, 5 * MIB..LAYER]),
        ("notes of another", format!("{other}{notes}"), vec![MIB..LAYER]),
        ("a note that was cut", format!("{own}{notes}[{},{}", 6 * MIB, LAYER), vec![2 * MIB..4 * MIB, 5 * MIB..LAYER]),
        ("no note", format!("{own}{}", "and more\n"), vec![MIB..LAYER]),
    ] {
        let scene = Scene::new(&[LAYER], Options::default());
        scene.leave(&content(0, LAYER)[..5 << 20], &record);
        scene.pull().await.unwrap();
        assert_eq!(scene.asked(0), asked, "{what}");
        scene.check();
    }
}

#[tokio::test]
async fn holes_are_filled_and_nothing_else() {
    let scene = Scene::new(&[LARGE], Options::default());
    let (trigger, fault) = stall(&scene.layers[0].digest.to_string(), 3 * MIB);
    scene.registry.inject(trigger.times(CONCURRENCY), fault);
    let starts = [0, 16, 32, 48];
    scene.pull_until(&starts.map(|start| start * MIB..(start + 3) * MIB));
    scene.registry.clear_requests();
    let report = scene.pull().await.unwrap();
    let holes = [3..16, 19..32, 35..48, 51..80].map(|hole| hole.start * MIB..hole.end * MIB);
    assert_parts(scene.asked(0), &holes);
    assert_eq!(report.bytes_transferred, LARGE - 12 * MIB);
    scene.check();
}

#[tokio::test]
async fn what_broke_off_is_kept_by_the_process_that_saw_it_too() {
    // A line that falls silent, and one that breaks before anybody looks at the time.
    for fault in [Fault::Stall { after: 5 << 20 }, Fault::DropReply { after: 5 << 20 }] {
        let scene = Scene::new(&[LAYER], Options::default());
        let layer = scene.layers[0].digest.to_string();
        let gone = Fault::Status { code: 404, retry_after: None, body: String::new() };
        scene.registry.inject(Trigger::on("GET", &layer), fault);
        scene.registry.inject(Trigger::on("GET", &layer).nth(2), gone);
        assert!(scene.pull_within(Duration::from_secs(1), &Progress::silent()).await.is_err());
        // In the record itself, which counts after a start of the system too.
        let (record, notes) = scene.record().unwrap();
        let reached = record["ranges"][0][1].as_u64().unwrap();
        assert!(reached > 0 && reached <= 5 * MIB && notes.is_empty(), "{record} {notes}");
        scene.registry.clear_requests();
        scene.pull().await.unwrap();
        assert_eq!(scene.asked(0), [reached..LAYER]);
        scene.check();
    }
}

#[tokio::test]
async fn wrong_bytes_of_an_earlier_pull_are_found_and_fetched_anew() {
    let scene = Scene::new(&[LAYER], Options::default());
    let (trigger, fault) = stall(&scene.layers[0].digest.to_string(), 3 * MIB);
    scene.registry.inject(trigger, fault);
    scene.pull_until(&[0..3 * MIB]);
    scene.registry.clear_requests();
    let mut bytes = fs::read(scene.file("partial")).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(scene.file("partial"), bytes).unwrap();
    scene.pull().await.unwrap();
    assert_eq!(scene.asked(0), [3 * MIB..LAYER, 0..LAYER]);
    scene.check();
}

#[tokio::test]
async fn a_record_that_lies_costs_one_transfer_and_no_more() {
    let whole = content(0, LAYER);
    let half = &whole[..whole.len() / 2];
    let record = |ranges: &str, size: u64| format!(r#"{{"ranges":{ranges},"size":{size}}}"#);
    let all = format!("[[0,{LAYER}]]");
    for (what, bytes, record) in [
        ("zeros for bytes", &vec![0; LAYER as usize][..], record(&all, LAYER)),
        ("more than the file has", half, record(&all, LAYER)),
        ("more than the content has", &whole, record(&format!("[[0,{}]]", LAYER + 1), LAYER)),
        ("another size", half, record("[[0,1048576]]", LAYER - 1)),
        ("a range that is none", half, record("[[9,9]]", LAYER)),
        ("a range that ends before it begins", half, record("[[9,8]]", LAYER)),
        ("no ranges", half, record("[]", LAYER)),
        ("no record", half, String::new()),
        ("half a record", half, record(&all, LAYER)[..20].to_owned()),
        ("bytes that are not there", &[], record("[[0,1048576]]", LAYER)),
    ] {
        let scene = Scene::new(&[LAYER], Options::default());
        scene.leave(bytes, &record);
        scene.pull().await.unwrap();
        assert_eq!(scene.asked(0), [0..LAYER], "{what}");
        scene.check();
    }
}

#[tokio::test]
async fn bytes_behind_the_end_do_not_become_content() {
    let scene = Scene::new(&[LAYER], Options::default());
    let longer = [&content(0, LAYER)[..], b"and more"].concat();
    scene.leave(&longer, &format!(r#"{{"ranges":[[0,{LAYER}]],"size":{LAYER}}}"#));
    assert_eq!(scene.pull().await.unwrap().bytes_transferred, 2);
    assert_eq!(scene.asked(0), []);
    scene.check();
}

#[tokio::test]
async fn what_was_hashed_is_not_written_again() {
    let scene = Scene::new(&[LAYER], Options { ranges: false, ..Options::default() });
    scene.leave(&content(0, LAYER), &format!(r#"{{"ranges":[[{},{LAYER}]],"size":{LAYER}}}"#, 2 * MIB));
    // The registry reads on behind the hole, in other bytes than it has.
    scene
        .registry
        .inject(Trigger::on("GET", &scene.layers[0].digest.to_string()).always(), Fault::FlipBit { at: 5 << 20 });
    scene.pull().await.unwrap();
    scene.check();
}

#[tokio::test]
async fn a_registry_that_sends_other_bytes_is_asked_no_more_than_it_takes_to_know() {
    for resumed in [false, true] {
        let scene = Scene::new(&[LAYER], Options::default());
        if resumed {
            scene.leave(&content(0, LAYER)[..3 << 20], &format!(r#"{{"ranges":[[0,{}]],"size":{LAYER}}}"#, 3 * MIB));
        }
        scene.registry.corrupt_blob(&scene.layers[0].digest.to_string());
        assert_eq!(scene.pull().await.unwrap_err().kind(), ErrorKind::Corrupt);
        let asked = if resumed { vec![3 * MIB..LAYER, 0..LAYER] } else { vec![0..LAYER] };
        assert_eq!(scene.asked(0), asked);
        assert_eq!(scene.left(), Vec::<String>::new(), "what is wrong is not kept");
    }
}

// --- several at once --------------------------------------------------------------------------

#[tokio::test]
async fn a_large_layer_comes_as_ranges_and_a_small_one_whole() {
    let scene = Scene::new(&[LARGE, LAYER], Options::default());
    scene.pull().await.unwrap();
    assert_parts(scene.asked(0), &[0..LARGE]);
    assert!(scene.asked(0).len() >= CONCURRENCY, "{:?}", scene.asked(0));
    assert!(scene.requests(1).len() == 1 && range_of(&scene.requests(1)[0]).is_none());
    scene.check();
}

#[tokio::test]
async fn as_many_streams_come_at_once_as_the_concurrency_says() {
    for sizes in [&[LARGE][..], &[LARGE, LAYER, LARGE, LARGE, LAYER, LAYER]] {
        let silent = (Trigger::on("GET", "/blobs/").always(), Fault::Stall { after: 1000 });
        let scene = Scene::new(sizes, Options { faults: vec![silent], ..Options::default() });
        let layers = 0..scene.layers.len();
        let asked = || layers.clone().map(|layer| scene.requests(layer).len()).sum::<usize>();
        tokio::select! {
            outcome = scene.pull() => panic!("it ended: {outcome:?}"),
            () = async {
                while asked() < CONCURRENCY {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            } => {}
        }
        assert_eq!(asked(), CONCURRENCY, "{sizes:?}");
    }
}

#[tokio::test]
async fn a_registry_without_ranges_sends_one_stream() {
    let scene = Scene::new(&[LARGE, LAYER, LARGE], Options { ranges: false, ..Options::default() });
    scene.pull().await.unwrap();
    for layer in [0, 2] {
        let requests = scene.requests(layer);
        assert!(requests.len() <= 2, "{:?}", scene.asked(layer));
        assert!(range_of(requests.last().unwrap()).is_none());
    }
    scene.check();

    let scene = Scene::new(&[LAYER], Options { ranges: false, ..Options::default() });
    let (kept, zeros) = (content(0, LAYER), vec![0; MIB as usize]);
    let holed = [&kept[..1 << 20], &zeros[..], &kept[2 << 20..4 << 20]].concat();
    scene.leave(&holed, &format!(r#"{{"ranges":[[0,{MIB}],[{},{}]],"size":{LAYER}}}"#, 2 * MIB, 4 * MIB));
    scene.pull().await.unwrap();
    assert_eq!(scene.asked(0), [MIB..2 * MIB, MIB..LAYER], "one hole tells, and the rest comes in one piece");
    scene.check();
}

#[tokio::test]
async fn a_layer_that_is_named_twice_is_fetched_once() {
    let layer = content(7, LAYER);
    let scene = Scene::new(&[], Options::default());
    let layers = publish(&scene.registry, &[layer.clone(), layer.clone(), layer]);
    let scene = Scene { layers, ..scene };
    let report = scene.pull().await.unwrap();
    assert_eq!((scene.asked(0).len(), report.blobs_transferred), (1, 2));
    scene.check();
}

#[tokio::test]
async fn a_mirror_in_chunks_asks_for_each_byte_once() {
    let (scene, other) = (Scene::new(&[LAYER], Options::default()), Fixture::start());
    let to = format!("{}/{REPOSITORY}:v1", other.host()).parse().unwrap();
    let mut access = access(PATIENCE);
    access.options.chunk = Some(MIB);
    let (from, progress) = (scene.reference().parse().unwrap(), Progress::silent());
    let mirror = transfer::mirror(&from, &to, &access, &progress);
    tokio::time::timeout(PATIENCE, mirror).await.unwrap().unwrap();
    assert!(scene.asked(0).len() > 2, "{:?}", scene.asked(0));
    assert_parts(scene.asked(0), &[0..LAYER]);
}

// --- registries -------------------------------------------------------------------------------

#[tokio::test]
async fn a_part_of_another_place_is_not_taken() {
    for (times, is_pulled) in [(1, true), (usize::MAX, false)] {
        let scene = Scene::new(&[LARGE], Options::default());
        let trigger = Trigger::on("GET", &scene.layers[0].digest.to_string()).nth(2).times(times);
        scene.registry.inject(trigger, Fault::ContentRange(format!("bytes 0-{}/{LARGE}", 16 * MIB - 1)));
        let outcome = scene.pull().await;
        assert_eq!(outcome.as_ref().err().map(|error| error.kind()), (!is_pulled).then_some(ErrorKind::Registry));
        if is_pulled {
            scene.check();
        }
    }
}

/// A source of zeros that gives one byte more than it is asked for, wherever that is.
struct Greedy;

impl Body for Greedy {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let more = Bytes::from(vec![0; (bytes.end - bytes.start) as usize + 1]);
        Box::pin(async move { Ok(Box::pin(stream::once(async { Ok(more) })) as ByteStream) })
    }

    fn reading(&self) -> Reading {
        Reading::Anywhere(CONCURRENCY)
    }
}

#[tokio::test]
async fn a_range_that_goes_on_into_the_next_is_not_taken() {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &vec![0; LARGE as usize]);
    let error = store.push(&expected, &Greedy).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("has more bytes than the"), "{error}");
    assert!(!store.exists(&expected).await.unwrap());
}

#[tokio::test]
async fn an_address_that_expired_is_asked_for_again() {
    for code in [400, 401, 403] {
        let storage = Fixture::start();
        publish(&storage, &[content(0, LAYER)]);
        let scene = Scene::new(&[LAYER], Options::default());
        let layer = scene.layers[0].digest.to_string();
        let expired = Fault::Status { code, retry_after: None, body: "<Code>ExpiredToken</Code>".to_owned() };
        scene.registry.inject(Trigger::on("GET", &layer).always(), Fault::RedirectTo(storage.host()));
        // Once before the first byte, and once when a stream that broke is taken up.
        storage.inject(Trigger::on("GET", &layer).nth(1), expired.clone());
        storage.inject(Trigger::on("GET", &layer).nth(2), Fault::DropReply { after: 3 << 20 });
        storage.inject(Trigger::on("GET", &layer).nth(3), expired);
        scene.pull().await.unwrap();
        let at = |registry| requests(registry, &scene.layers[0]).iter().map(range_of).collect::<Vec<_>>();
        let rest = Some(3 * MIB..LAYER);
        assert_eq!(at(&storage), [None, None, rest.clone(), rest], "{code}");
        assert_eq!(at(&scene.registry), at(&storage), "{code}");
        scene.check();
    }
}

#[tokio::test]
async fn what_the_registry_itself_refuses_is_not_asked_for_again() {
    for (code, kind) in [(400, ErrorKind::Registry), (403, ErrorKind::Unauthorized)] {
        let scene = Scene::new(&[LAYER], Options::default());
        let refused = Fault::Status { code, retry_after: None, body: String::new() };
        scene.registry.inject(Trigger::on("GET", &scene.layers[0].digest.to_string()).always(), refused);
        assert_eq!(scene.pull().await.unwrap_err().kind(), kind);
        assert_eq!(scene.requests(0).len(), 1, "{code}");
    }
}

// --- several processes ------------------------------------------------------------------------

#[test]
fn two_pulls_of_a_model_fetch_it_once() {
    let scene = Scene::new(&[LAYER], Options::default());
    let trigger = Trigger::on("GET", &scene.layers[0].digest.to_string());
    scene.registry.inject(trigger, Fault::Delay(Duration::from_secs(2)));
    let first = scene.start_pull();
    wait_for("the first pull", || scene.requests(0).len() == 1);
    let second = scene.start_pull();
    first.finish();
    second.finish();
    assert_eq!(scene.asked(0), [0..LAYER]);
    scene.check();
}

#[test]
fn who_waited_for_a_pull_that_was_killed_goes_on_with_it() {
    let scene = Scene::new(&[LAYER], Options::default());
    let (trigger, fault) = stall(&scene.layers[0].digest.to_string(), 3 * MIB);
    scene.registry.inject(trigger, fault);
    let first = scene.start_pull();
    wait_for("a record", || scene.file("ranges").exists());
    let second = scene.start_pull();
    let manifests = || scene.registry.requests().iter().filter(|request| request.path.contains("manifests")).count();
    wait_for("the second pull", || manifests() == 2);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(scene.asked(0), [0..LAYER], "the second waits");
    drop(first);
    second.finish();
    assert_eq!(scene.asked(0), [0..LAYER, 3 * MIB..LAYER]);
    scene.check();
}
