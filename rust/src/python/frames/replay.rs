//! `simulate`: a trace of accesses replayed against caches of several budgets.

use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::frames::memory::replay::{self, Policy};
use crate::python::gil::Release;

/// Hits of all accesses, and of those that are not scans, for each budget.
#[pyfunction]
fn simulate(
    py: Python<'_>,
    keys: PyReadonlyArray1<'_, u32>,
    weights: PyReadonlyArray1<'_, u32>,
    scans: PyReadonlyArray1<'_, bool>,
    policy: &str,
    budgets: Vec<u64>,
) -> PyResult<Vec<(u64, u64)>> {
    let (keys, weights, scans) = (keys.as_slice()?, weights.as_slice()?, scans.as_slice()?);
    let Some(policy) = Policy::from_name(policy) else {
        let names: Vec<&str> = Policy::ALL.iter().map(|policy| policy.name()).collect();
        return Err(PyValueError::new_err(format!("policy {policy:?}: one of {}", names.join(", "))));
    };
    if keys.len() != weights.len() || keys.len() != scans.len() {
        return Err(PyValueError::new_err("keys, weights and scans differ in length"));
    }
    if keys.iter().any(|&key| key as usize >= keys.len()) {
        return Err(PyValueError::new_err("keys must be numbered densely from 0"));
    }
    let rows = keys.iter().zip(weights).zip(scans);
    let trace: Vec<replay::Access> =
        rows.map(|((&key, &weight), &scan)| replay::Access { key, weight, scan }).collect();
    Ok(py.release(|| {
        let hits = budgets.iter().map(|&budget| replay::replay(&trace, policy, budget));
        hits.map(|hits| (hits.all, hits.clinical)).collect()
    }))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(simulate, module)?)
}
