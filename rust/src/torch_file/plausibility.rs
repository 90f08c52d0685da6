//! Judges floating-point tensors while their record is read: constant, NaN or infinite numbers.
//!
//! What is judged is the tensor, not its storage: a view of a few slices is judged by these slices.

use std::collections::HashSet;

use super::pickle::{Graph, Tensor, Value};

/// Elements from which a tensor is watched: few numbers may be equal.
const FROM: u64 = 64;
/// A storage whose views hold this many times its elements is judged as a whole instead.
const MOST_REPEATED: u64 = 8;

/// The tensors that are watched in each record, by the key of its storage.
pub(super) fn watches(graph: &Graph, record: &str) -> Vec<Watch> {
    let Some(storage) = record.strip_prefix("data/").and_then(|key| graph.storages.get(key)) else {
        return Vec::new();
    };
    let parts: HashSet<usize> = graph.values.iter().filter_map(elements_of_composite).collect();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut work = 0u64;
    let mut is_named = false;
    for (id, value) in graph.values.iter().enumerate() {
        let Value::Tensor(tensor) = value else { continue };
        if tensor.storage.key != storage.key {
            continue;
        }
        is_named = true;
        let Some(kind) = Float::of(tensor.dtype.as_deref().unwrap_or(&storage.class)) else { continue };
        let Some(view) = View::of(tensor) else { continue };
        if view.count >= FROM && seen.insert((tensor.offset, &tensor.shape, &tensor.stride)) {
            work = work.saturating_add(view.end - view.start);
            found.push(Watch::new(kind, view, !parts.contains(&id)));
        }
    }
    if is_named && work <= storage.numel.saturating_mul(MOST_REPEATED) {
        return found;
    }
    let whole = View { start: 0, end: storage.numel, count: storage.numel, axes: Vec::new() };
    let kind = Float::of(&storage.class).filter(|_| storage.numel >= FROM);
    kind.map(|kind| Watch::new(kind, whole, true)).into_iter().collect()
}

fn elements_of_composite(value: &Value) -> Option<usize> {
    match value {
        Value::Composite(composite) => Some(composite.elements),
        _ => None,
    }
}

/// The elements of a storage that belong to a tensor.
struct View {
    /// The first element.
    start: u64,
    /// The first element behind the last.
    end: u64,
    /// Elements of the tensor.
    count: u64,
    /// Length and stride of each axis, by falling stride; empty where the view is all of `start..end`.
    axes: Vec<(u64, u64)>,
}

impl View {
    /// `None` for a tensor without elements. The tensor lies inside its storage.
    fn of(tensor: &Tensor) -> Option<Self> {
        let start = u64::try_from(tensor.offset).ok()?;
        let mut axes = Vec::new();
        let (mut count, mut reach) = (1u64, 0u64);
        for (&length, &stride) in tensor.shape.iter().zip(&tensor.stride) {
            let (length, stride) = (u64::try_from(length).ok()?, u64::try_from(stride).ok()?);
            count = count.checked_mul(length).filter(|&count| count > 0)?;
            if length > 1 && stride > 0 {
                reach = reach.checked_add((length - 1).checked_mul(stride)?)?;
                axes.push((length, stride));
            }
        }
        axes.sort_unstable_by_key(|&(_, stride)| std::cmp::Reverse(stride));
        let end = start.checked_add(reach)?.checked_add(1)?;
        let distinct = axes.iter().try_fold(1u64, |product, &(length, _)| product.checked_mul(length));
        // A view whose elements overlap, as a sliding window makes it, is judged by all that it spans.
        if distinct == Some(reach + 1) || !are_apart(&axes) {
            axes.clear();
        }
        Some(Self { start, end, count, axes })
    }

    fn holds(&self, element: u64) -> bool {
        let Some(mut rest) = element.checked_sub(self.start) else { return false };
        for &(length, stride) in &self.axes {
            let step = rest.checked_div(stride).unwrap_or(length);
            if step >= length {
                return false;
            }
            rest -= step * stride;
        }
        rest == 0
    }
}

/// Whether each step along an axis is longer than all that the later axes reach.
fn are_apart(axes: &[(u64, u64)]) -> bool {
    let mut reach = 0u64;
    axes.iter().rev().all(|&(length, stride)| {
        let is_apart = stride > reach;
        reach = reach.saturating_add((length - 1).saturating_mul(stride));
        is_apart
    })
}

/// Watches the elements of one tensor for what no real volume is: constant, NaN or infinite.
///
/// Integers are masks and counts, which may be constant, and so may the elements of a sparse tensor.
pub(super) struct Watch {
    kind: Float,
    view: View,
    may_not_be_constant: bool,
    first: Option<[u8; 8]>,
    constant: bool,
    not_a_number: u64,
    infinite: u64,
}

#[derive(Clone, Copy)]
enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    fn of(name: &str) -> Option<Self> {
        match name {
            "torch.HalfStorage" | "torch.float16" => Some(Self::F16),
            "torch.BFloat16Storage" | "torch.bfloat16" => Some(Self::Bf16),
            "torch.FloatStorage" | "torch.float32" => Some(Self::F32),
            "torch.DoubleStorage" | "torch.float64" => Some(Self::F64),
            _ => None,
        }
    }
}

impl Watch {
    fn new(kind: Float, view: View, may_not_be_constant: bool) -> Self {
        Self { kind, view, may_not_be_constant, first: None, constant: true, not_a_number: 0, infinite: 0 }
    }

    /// Looks at a chunk of the record, which begins at byte `at` of it, on the border of an element.
    pub fn look_at(&mut self, at: u64, chunk: &[u8]) {
        match self.kind {
            Float::F16 => self.elements::<2>(at, chunk, |b| classify_16(u16::from_le_bytes(b), 0x7C00)),
            Float::Bf16 => self.elements::<2>(at, chunk, |b| classify_16(u16::from_le_bytes(b), 0x7F80)),
            Float::F32 => self.elements::<4>(at, chunk, |b| {
                let value = f32::from_le_bytes(b);
                (value.is_nan(), value.is_infinite())
            }),
            Float::F64 => self.elements::<8>(at, chunk, |b| {
                let value = f64::from_le_bytes(b);
                (value.is_nan(), value.is_infinite())
            }),
        }
    }

    fn elements<const N: usize>(
        &mut self,
        at: u64,
        chunk: &[u8],
        classify: impl Fn([u8; N]) -> (bool, bool),
    ) {
        let (elements, _) = chunk.as_chunks::<N>();
        let begin = at / N as u64;
        let from = self.view.start.saturating_sub(begin).min(elements.len() as u64) as usize;
        let to = self.view.end.saturating_sub(begin).min(elements.len() as u64) as usize;
        let elements = elements.get(from..to).unwrap_or_default();
        if self.view.axes.is_empty() {
            return self.run(elements, classify);
        }
        for (number, element) in (begin + from as u64..).zip(elements) {
            if self.view.holds(number) {
                self.run(std::slice::from_ref(element), &classify);
            }
        }
    }

    fn run<const N: usize>(&mut self, elements: &[[u8; N]], classify: impl Fn([u8; N]) -> (bool, bool)) {
        let Some(head) = elements.first() else { return };
        let mut wide = [0; 8];
        for (to, &from) in wide.iter_mut().zip(head) {
            *to = from;
        }
        let first = *self.first.get_or_insert(wide);
        self.constant &= first == wide && elements.iter().all(|element| element == head);
        for &element in elements {
            let (not_a_number, infinite) = classify(element);
            self.not_a_number += u64::from(not_a_number);
            self.infinite += u64::from(infinite);
        }
    }

    /// Why the elements are implausible.
    pub fn reason(&self) -> Option<String> {
        if self.not_a_number > 0 || self.infinite > 0 {
            return Some(format!("{} NaN and {} infinite elements", self.not_a_number, self.infinite));
        }
        let zero = self.first.is_some_and(|first| first == [0; 8]);
        (self.constant && self.may_not_be_constant && self.first.is_some())
            .then(|| if zero { "every element is zero" } else { "every element is equal" }.to_owned())
    }
}

/// Whether a 16-bit float with that exponent mask is NaN, and whether it is infinite.
fn classify_16(bits: u16, exponent: u16) -> (bool, bool) {
    let special = bits & exponent == exponent;
    let fraction = bits & !exponent & 0x7FFF;
    (special && fraction != 0, special && fraction == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch_file::pickle::Storage;

    fn members(offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u64> {
        let storage = Storage { class: "torch.FloatStorage".into(), key: "0".into(), numel: 60 };
        let tensor = Tensor {
            storage: storage.into(),
            dtype: None,
            offset,
            shape: shape.into(),
            stride: stride.into(),
            extra: vec![],
        };
        let view = View::of(&tensor).expect("elements");
        (0..60)
            .filter(|&n| n >= view.start && n < view.end && (view.axes.is_empty() || view.holds(n)))
            .collect()
    }

    fn listed(offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u64> {
        let mut all = vec![offset];
        for (&length, &stride) in shape.iter().zip(stride) {
            all = all.iter().flat_map(|&from| (0..length).map(move |step| from + step * stride)).collect();
        }
        let mut all: Vec<u64> = all.into_iter().map(|n| n as u64).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    #[test]
    fn a_view_holds_its_elements_and_no_others() {
        for (offset, shape, stride) in [
            (0, vec![3, 4, 5], vec![20, 5, 1]),
            (7, vec![2, 3], vec![20, 5]),
            (0, vec![5, 4, 3], vec![1, 5, 20]), // permuted
            (3, vec![4], vec![7]),
            (2, vec![3, 1, 2], vec![10, 99, 2]),
            (5, vec![4, 3], vec![0, 6]), // expanded
            (1, vec![2, 2, 2], vec![30, 9, 4]),
        ] {
            assert_eq!(members(offset, &shape, &stride), listed(offset, &shape, &stride), "{shape:?}");
        }
        assert_eq!(members(4, &[3, 4], &[2, 1]), (4..12).collect::<Vec<u64>>()); // a sliding window
    }

    #[test]
    fn a_tensor_without_elements_is_not_watched() {
        let storage = Storage { class: "torch.FloatStorage".into(), key: "0".into(), numel: 60 };
        let (shape, stride) = (vec![0, 4], vec![4, 1]);
        let empty = Tensor { storage: storage.into(), dtype: None, offset: 0, shape, stride, extra: vec![] };
        assert!(View::of(&empty).is_none());
    }
}
