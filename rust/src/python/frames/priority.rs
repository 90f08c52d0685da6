//! `score_many` and `top_n` over numpy columns.

use std::cmp::Ordering;

use numpy::{PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::frames::priority::top_n::top_n as best;
use crate::frames::priority::{self, Columns, Formula};
use crate::python::gil::Release;

type Times<'py> = PyReadonlyArray1<'py, i64>;

#[pyfunction]
#[pyo3(signature = (last_used, inserted, count, *, now, weights, half_lives, out))]
#[allow(clippy::too_many_arguments)] // mirrors the Python signature
fn score_many(
    py: Python<'_>,
    last_used: Times<'_>,
    inserted: Times<'_>,
    count: Times<'_>,
    now: i64,
    weights: [f64; 3],
    half_lives: [f64; 2],
    mut out: PyReadwriteArray1<'_, f64>,
) -> PyResult<(u64, i64)> {
    let formula = Formula::new(weights, half_lives)?;
    let columns = Columns::new(last_used.as_slice()?, inserted.as_slice()?, count.as_slice()?)?;
    let out = out.as_slice_mut()?;
    let skew = py.release(|| priority::score_many(&formula, &columns, now, out))?;
    Ok((skew.clamped, skew.worst_us))
}

type RowsAndScores<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>);

#[pyfunction]
#[pyo3(signature = (last_used, inserted, count, *, n, now, weights, half_lives, ids=None, names=None))]
#[allow(clippy::too_many_arguments)] // mirrors the Python signature
fn top_n<'py>(
    py: Python<'py>,
    last_used: Times<'py>,
    inserted: Times<'py>,
    count: Times<'py>,
    n: usize,
    now: i64,
    weights: [f64; 3],
    half_lives: [f64; 2],
    ids: Option<Times<'py>>,
    names: Option<Vec<PyBackedStr>>,
) -> PyResult<RowsAndScores<'py>> {
    let formula = Formula::new(weights, half_lives)?;
    let columns = Columns::new(last_used.as_slice()?, inserted.as_slice()?, count.as_slice()?)?;
    let ids = ids.as_ref().map(|ids| ids.as_slice()).transpose()?;
    for length in [ids.map(<[i64]>::len), names.as_ref().map(Vec::len)].into_iter().flatten() {
        if length != columns.len() {
            let rows = columns.len();
            return Err(priority::invalid(format!("ids has {length} values for {rows} rows")).into());
        }
    }
    let tie = |a: u32, b: u32| -> Ordering {
        let (a, b) = (a as usize, b as usize);
        match (&ids, &names) {
            (Some(ids), _) => ids.get(a).cmp(&ids.get(b)),
            // Bytes of UTF-8 sort like code points, as with COLLATE "C" and Python's `<`.
            (None, Some(names)) => names.get(a).map(|name| &**name).cmp(&names.get(b).map(|name| &**name)),
            (None, None) => a.cmp(&b),
        }
    };
    let ranked = py.release(|| best(&formula, &columns, now, n, &tie))?;
    let rows = PyArray1::from_iter(py, ranked.iter().map(|&(_, row)| i64::from(row)));
    let scores = PyArray1::from_iter(py, ranked.iter().map(|&(score, _)| score));
    Ok((rows, scores))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(score_many, module)?)?;
    module.add_function(wrap_pyfunction!(top_n, module)?)?;
    Ok(())
}
