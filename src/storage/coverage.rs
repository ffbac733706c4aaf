//! Which bytes of some content are there, when they do not come in order.

use std::ops::Range;

/// A set of bytes, as ranges in order of which none touches the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(Vec<Range<u64>>);

impl Coverage {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bytes`, and says how many of them are new.
    pub fn add(&mut self, bytes: Range<u64>) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let before = self.len();
        let first = self.0.partition_point(|range| range.end < bytes.start);
        let last = self.0.partition_point(|range| range.start <= bytes.end);
        let touched = &self.0[first..last];
        let start = touched.first().map_or(bytes.start, |range| range.start.min(bytes.start));
        let end = touched.last().map_or(bytes.end, |range| range.end.max(bytes.end));
        self.0.splice(first..last, std::iter::once(start..end));
        self.len() - before
    }

    /// How many bytes are there.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes that are there.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// The ranges of `bytes` that are not there.
    pub fn holes(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        let (mut holes, mut position) = (Vec::new(), bytes.start);
        for range in &self.0[self.0.partition_point(|range| range.end <= bytes.start)..] {
            if range.start >= bytes.end {
                break;
            }
            if position < range.start {
                holes.push(position..range.start);
            }
            position = range.end;
        }
        if position < bytes.end {
            holes.push(position..bytes.end);
        }
        holes
    }

    /// Where the bytes end that are there from `offset` on.
    pub fn end_of(&self, offset: u64) -> u64 {
        let next = self.0.get(self.0.partition_point(|range| range.end <= offset));
        next.filter(|range| range.start <= offset).map_or(offset, |range| range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_once() {
        let mut there = Coverage::new();
        for (bytes, new) in [(10..20, 10), (30..40, 10), (15..18, 0), (5..5, 0), (20..25, 5), (8..35, 7), (0..50, 18)] {
            assert_eq!(there.add(bytes.clone()), new, "{bytes:?}");
        }
        assert_eq!((there.len(), there.end_of(0)), (50, 50));
    }

    #[test]
    fn it_is_what_a_set_of_bytes_is() {
        // Every sequence of three ranges within six bytes.
        let all: Vec<Range<u64>> = (0..=6).flat_map(|end| (0..=end).map(move |start| start..end)).collect();
        for sequence in 0..all.len().pow(3) {
            let ranges = [1, all.len(), all.len().pow(2)].map(|place| all[sequence / place % all.len()].clone());
            let (mut there, mut bytes) = (Coverage::new(), [false; 6]);
            let absent = |bytes: &[bool; 6], range: &Range<u64>| {
                range.clone().filter(|&byte| !bytes[byte as usize]).collect::<Vec<u64>>()
            };
            for range in &ranges {
                assert_eq!(there.add(range.clone()), absent(&bytes, range).len() as u64, "{ranges:?}");
                bytes[range.start as usize..range.end as usize].fill(true);
            }
            for range in &all {
                let holes: Vec<u64> = there.holes(range.clone()).into_iter().flatten().collect();
                assert_eq!(holes, absent(&bytes, range), "{ranges:?}");
            }
            for offset in 0..6 {
                let end = absent(&bytes, &(offset..6)).first().copied().unwrap_or(6);
                assert_eq!(there.end_of(offset), end, "{ranges:?}, {offset}");
            }
            assert!(there.ranges().windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        }
    }
}
