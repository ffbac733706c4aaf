//! What a pull that breaks off leaves: a record of the bytes that arrived, which are on disk, whenever the power fails.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};
use kiln::oci::{Descriptor, MediaType};
use kiln::storage::{Body, ByteStream, Push as _};
use kiln::store::Store;
use kiln::{Error, ErrorKind, Result};
use tokio::runtime::Builder;

use super::model::{Disk, Random};
use super::record::{Recorder, Step};

const SIZE: usize = 1_500_000;
/// How much of it arrives.
const ARRIVES: usize = 1_300_000;

/// Content whose transfer breaks off.
struct Breaking(Bytes);

impl Body for Breaking {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let mut chunks: Vec<Result<Bytes>> = Vec::new();
        for start in (bytes.start as usize..ARRIVES).step_by(100_000) {
            chunks.push(Ok(self.0.slice(start..ARRIVES.min(start + 100_000))));
        }
        chunks.push(Err(Error::new(ErrorKind::Registry, "The connection broke")));
        async move { Ok(Box::pin(stream::iter(chunks)) as ByteStream) }.boxed()
    }
}

/// The log of a transfer that breaks off.
fn broken_off(content: &Bytes) -> Vec<Step> {
    let place = super::place();
    let recorder = Recorder::new(place.path());
    let store = Store::open_on(recorder.disk(), &place.path().join("store")).unwrap();
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let error = runtime.block_on(store.push(&target, &Breaking(content.clone()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry, "{}", error.chain());
    recorder.log()
}

/// How many of the states after a crash have a record of bytes, and what is wrong with one of them.
fn look(log: &[Step], content: &[u8]) -> (usize, Option<String>) {
    let (mut disk, mut recorded) = (Disk::new(), 0);
    for (index, step) in log.iter().enumerate() {
        disk.apply(step);
        for remains in disk.crashes(&mut Random(5)) {
            for (path, record) in remains.iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "ranges")) {
                // Notes behind the first line count for the boot in which they were made.
                let line = record.as_ref().and_then(|record| record.split(|byte| *byte == b'\n').next());
                let Ok(record) = serde_json::from_slice::<serde_json::Value>(line.unwrap_or_default()) else {
                    continue;
                };
                // Without its file a record counts for nothing.
                let Some(Some(bytes)) = remains.get(&path.with_extension("partial")) else { continue };
                for range in record["ranges"].as_array().unwrap() {
                    recorded += 1;
                    let [start, end] = [0, 1].map(|at| range[at].as_u64().unwrap() as usize);
                    if bytes.get(start..end) != Some(&content[start..end]) {
                        return (recorded, Some(format!("{start}..{end} are not there after step {index}, {step:?}")));
                    }
                }
            }
        }
    }
    (recorded, None)
}

#[test]
fn a_record_speaks_of_bytes_that_are_on_disk() {
    let content: Bytes = (0..SIZE as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let log = broken_off(&content);
    let (recorded, violation) = look(&log, &content);
    assert_eq!(violation, None);
    assert!(recorded > 0, "no state has a record");
    // The fsync before the record is needed for that.
    let is_sync = |step: &Step| matches!(step, Step::Sync(path) if path.extension().is_some_and(|it| it == "partial"));
    let without: Vec<Step> = log.iter().filter(|step| !is_sync(step)).cloned().collect();
    assert_ne!(without, log);
    assert!(look(&without, &content).1.is_some(), "nothing needs the fsync of what arrived before its record");
}
