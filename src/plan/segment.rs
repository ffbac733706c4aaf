//! Byte ranges of source tensors: runs, and runs that repeat at a distance, which is how rows are
//! interleaved and matrices transposed without touching a value.

/// Bytes of one source tensor, after decoding: a run, repeated as its loops say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index into [`super::PlannedTensor::sources`].
    pub source: usize,
    /// Where the first run starts in that tensor, in bytes.
    pub offset: u64,
    /// How many bytes a run has.
    pub run: u64,
    /// How the run repeats, the outermost loop first; none for a single run.
    pub loops: Vec<Loop>,
}

/// One dimension in which a run repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// How often.
    pub count: u64,
    /// The distance from one start to the next, in bytes.
    pub step: u64,
}

impl Segment {
    /// One run.
    pub fn run(source: usize, offset: u64, run: u64) -> Self {
        Self { source, offset, run, loops: Vec::new() }
    }

    /// How many bytes it gives.
    pub fn bytes(&self) -> u64 {
        self.run * self.loops.iter().map(|repeat| repeat.count).product::<u64>()
    }

    /// How many bytes of the source lie between its first and the end of its last.
    pub fn span(&self) -> u64 {
        self.run + self.loops.iter().map(|repeat| repeat.count.saturating_sub(1) * repeat.step).sum::<u64>()
    }

    /// The segments of its outermost loop, or itself.
    pub fn unrolled(&self) -> impl Iterator<Item = Self> + '_ {
        let (Loop { count, step }, inner) = match self.loops.split_first() {
            Some((outer, inner)) => (*outer, inner),
            None => (Loop { count: 1, step: 0 }, &[][..]),
        };
        (0..count).map(move |turn| Self { offset: self.offset + turn * step, loops: inner.to_vec(), ..*self })
    }

    /// Where in the source the byte is that it gives at `index`.
    pub fn locate(&self, index: u64) -> u64 {
        let (mut at, mut turns) = (self.offset + index % self.run.max(1), index / self.run.max(1));
        for Loop { count, step } in self.loops.iter().rev() {
            at += turns % count.max(&1) * step;
            turns /= count.max(&1);
        }
        at
    }

    /// Gives every byte it takes from `bytes`, which starts at [`Self::offset`], in order.
    pub fn gather(&self, bytes: &[u8], out: &mut Vec<u8>) {
        gather(&self.loops, self.run as usize, bytes, out);
    }

    /// Joins `next` to the end of `segments`, as one run where it continues the last.
    pub(super) fn push(segments: &mut Vec<Self>, next: Self) {
        match segments.last_mut() {
            Some(last)
                if last.source == next.source
                    && last.loops.is_empty()
                    && next.loops.is_empty()
                    && last.offset + last.run == next.offset =>
            {
                last.run += next.run;
            }
            _ => segments.push(next),
        }
    }
}

fn gather(loops: &[Loop], run: usize, bytes: &[u8], out: &mut Vec<u8>) {
    match loops.split_first() {
        None => out.extend_from_slice(&bytes[..run]),
        Some((outer, inner)) => {
            for turn in 0..outer.count {
                gather(inner, run, &bytes[(turn * outer.step) as usize..], out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 3]` elements of two bytes, transposed, of the second of two matrices.
    fn transposed() -> Segment {
        Segment { source: 0, offset: 12, run: 2, loops: vec![Loop { count: 3, step: 2 }, Loop { count: 2, step: 6 }] }
    }

    #[test]
    fn a_transposed_matrix_is_read_column_by_column() {
        let source: Vec<u8> = (0..24).collect();
        let segment = transposed();
        assert_eq!((segment.bytes(), segment.span()), (12, 12));
        let mut out = Vec::new();
        segment.gather(&source[12..], &mut out);
        assert_eq!(out, [12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23]);
        for (index, byte) in (0..).zip(&out) {
            assert_eq!(source[segment.locate(index) as usize], *byte, "{index}");
        }
        let mut unrolled = Vec::new();
        segment.unrolled().for_each(|part| part.gather(&source[part.offset as usize..], &mut unrolled));
        assert_eq!(unrolled, out);
    }

    #[test]
    fn runs_that_touch_are_one() {
        let mut segments = Vec::new();
        for next in [Segment::run(0, 0, 4), Segment::run(0, 4, 4), Segment::run(0, 12, 4), Segment::run(1, 16, 4)] {
            Segment::push(&mut segments, next);
        }
        assert_eq!(segments, [Segment::run(0, 0, 8), Segment::run(0, 12, 4), Segment::run(1, 16, 4)]);
    }
}
