//! `FrameTable`, `read_table` and `read_frame`.

pub(super) mod unfilled;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use numpy::ndarray::ArrayView1;
use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyIndexError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use crate::base::error::Result;
use crate::base::source::Fingerprint;
use crate::base::window::Buffer;
use crate::dicom::read::fill::read_frame_into;
use crate::dicom::read::{FrameBytes, prefetch, read_aligned, together};
use crate::dicom::{self, PARSER_VERSION};
use crate::frames::notes::Note;
use crate::frames::table::{FrameTable, Items, Layout, Method, Verify};
use crate::frames::{packed, record};
use crate::python::sources::with_source;
use unfilled::Unfilled;

#[pyclass(frozen, module = "voxtier._core", name = "FrameTable")]
pub struct PyFrameTable {
    pub(super) table: FrameTable,
    /// Arrays that are computed on first use: ranges of native frames, identity maps.
    items: OnceLock<Items>,
    first: OnceLock<Vec<u32>>,
}

impl From<FrameTable> for PyFrameTable {
    fn from(table: FrameTable) -> Self {
        Self { table, items: OnceLock::new(), first: OnceLock::new() }
    }
}

impl PyFrameTable {
    fn items(&self) -> Result<&Items> {
        if let Layout::Items(items) = &self.table.layout {
            return Ok(items);
        }
        let items = self.table.to_items()?.into_owned();
        Ok(self.items.get_or_init(|| items))
    }

    fn index(&self, index: isize) -> PyResult<usize> {
        let frames = self.table.frames();
        let positive = if index < 0 { index.checked_add_unsigned(frames) } else { Some(index) };
        positive
            .and_then(|index| usize::try_from(index).ok())
            .filter(|&index| index < frames)
            .ok_or_else(|| PyIndexError::new_err(format!("frame {index} of {frames}, counted from 0")))
    }
}

/// Takes numbers of frames: one that does not fit is one that no file has, not an overflow.
pub(super) fn number<'py, T: FromPyObjectOwned<'py>>(value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract().map_err(Into::into).map_err(|error: PyErr| {
        if !error.is_instance_of::<PyOverflowError>(value.py()) {
            return error;
        }
        let shown: String = value.to_string().chars().take(60).collect();
        PyIndexError::new_err(format!("frame {shown}: frames count from 0, and no file has so many"))
    })
}

/// A read-only numpy view on memory that `owner` keeps alive.
fn view<'py, T: Element>(owner: Bound<'py, PyAny>, values: &[T]) -> Bound<'py, PyArray1<T>> {
    // SAFETY: the values belong to a frozen class and never move or change while `owner` lives.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(values), owner) };
    array.readwrite().make_nonwriteable();
    array
}

#[pymethods]
impl PyFrameTable {
    #[getter]
    fn status(&self) -> &'static str {
        self.table.status.name()
    }
    #[getter]
    fn kind(&self) -> &'static str {
        self.table.kind.name()
    }
    #[getter]
    fn method(&self) -> &'static str {
        self.table.method.name()
    }
    #[getter]
    fn verified(&self) -> &'static str {
        self.table.verified.name()
    }
    #[getter]
    fn offsets_in(&self) -> &'static str {
        self.table.offsets_in.name()
    }
    #[getter]
    fn transfer_syntax_uid(&self) -> &str {
        &self.table.transfer_syntax_uid
    }
    #[getter]
    fn number_of_frames(&self) -> u32 {
        self.table.image.number_of_frames
    }
    #[getter]
    fn fragment_count(&self) -> usize {
        self.table.fragments()
    }
    #[getter]
    fn truncated_from(&self) -> Option<u32> {
        self.table.truncated_from
    }
    #[getter]
    fn notes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.table.notes.names().collect::<Vec<_>>())
    }
    #[getter]
    fn pixel_data_pos(&self) -> Option<u64> {
        self.table.pixel_data_pos
    }
    #[getter]
    fn rows(&self) -> u32 {
        self.table.image.rows
    }
    #[getter]
    fn columns(&self) -> u32 {
        self.table.image.columns
    }
    #[getter]
    fn samples_per_pixel(&self) -> u16 {
        self.table.image.samples_per_pixel
    }
    #[getter]
    fn bits_allocated(&self) -> u16 {
        self.table.image.bits_allocated
    }
    #[getter]
    fn photometric_interpretation(&self) -> &str {
        &self.table.image.photometric_interpretation
    }
    #[getter]
    fn sop_instance_uid(&self) -> &str {
        &self.table.image.sop_instance_uid
    }
    #[getter]
    fn series_instance_uid(&self) -> &str {
        &self.table.image.series_instance_uid
    }
    #[getter]
    fn study_instance_uid(&self) -> &str {
        &self.table.image.study_instance_uid
    }
    #[getter]
    fn size(&self) -> u64 {
        self.table.fingerprint.size
    }
    #[getter]
    fn mtime_ns(&self) -> Option<i64> {
        self.table.fingerprint.mtime_ns
    }
    #[getter]
    fn ctime_ns(&self) -> Option<i64> {
        self.table.fingerprint.ctime_ns
    }
    #[getter]
    fn inode(&self) -> Option<u64> {
        self.table.fingerprint.inode
    }
    #[getter]
    fn etag(&self) -> Option<&str> {
        self.table.fingerprint.etag.as_deref()
    }
    #[getter]
    fn holds_spans(&self) -> bool {
        self.table.holds_spans()
    }
    #[getter]
    fn offsets<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        Ok(view(slf.clone().into_any(), &slf.get().items()?.offsets))
    }
    #[getter]
    fn lengths<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        Ok(view(slf.clone().into_any(), &slf.get().items()?.lengths))
    }
    #[getter]
    fn frame_first<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let this = slf.get();
        let items = this.items()?;
        let identity = || (0..=items.frames() as u32).collect();
        let first = items.frame_first.as_ref().unwrap_or_else(|| this.first.get_or_init(identity));
        Ok(view(slf.clone().into_any(), first))
    }
    #[getter]
    fn packed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &packed::encode(&self.table.layout))
    }

    fn ranges(&self, #[pyo3(from_py_with = number)] index: isize) -> PyResult<Vec<(u64, u64)>> {
        Ok(self.table.ranges(self.index(index)?).collect())
    }

    fn bit_offset(&self, #[pyo3(from_py_with = number)] index: isize) -> PyResult<u8> {
        Ok(self.table.bit_offset(self.index(index)?))
    }

    #[getter]
    fn frame_bits(&self) -> Option<u64> {
        self.table.frame_bits()
    }

    fn describes(&self, source: &Bound<'_, PyAny>) -> PyResult<bool> {
        describes(self.table.fingerprint, source)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &record::encode(&self.table))
    }

    #[staticmethod]
    fn from_bytes(record: &[u8]) -> Result<Self> {
        Ok(record::decode(record)?.into())
    }

    fn __len__(&self) -> usize {
        self.table.frames()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let decode = PyType::new::<Self>(slf.py()).getattr("from_bytes")?;
        Ok((decode, (slf.get().to_bytes(slf.py()),)))
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| self.table == other.get().table)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        record::encode(&self.table).hash(&mut hasher);
        hasher.finish()
    }

    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("voxtier.frames.dicom.explain")?.call_method1("table_html", (slf,))
    }

    fn __repr__(&self) -> String {
        let table = &self.table;
        format!(
            "FrameTable(status='{}', kind='{}', method='{}', verified='{}', frames={}, fragments={})",
            table.status,
            table.kind,
            table.method,
            table.verified,
            table.frames(),
            table.fragments()
        )
    }
}

/// Whether a source may be in this state: see [`Fingerprint::agrees_with`].
pub(super) fn describes(state: Fingerprint, source: &Bound<'_, PyAny>) -> PyResult<bool> {
    with_source(source, |source| Ok(state.agrees_with(&source.fingerprint())))
}

pub(super) fn parse_verify(verify: &str) -> PyResult<Verify> {
    Verify::from_name(verify)
        .ok_or_else(|| PyValueError::new_err(format!("verify is 'none', 'ends' or 'all', not '{verify}'")))
}

#[pyfunction]
#[pyo3(signature = (source, *, verify="ends"))]
fn read_table(source: &Bound<'_, PyAny>, verify: &str) -> PyResult<PyFrameTable> {
    let verify = parse_verify(verify)?;
    let table = with_source(source, |source| dicom::read_table(source, verify, &mut Buffer::default()))?;
    Ok(table.into())
}

#[pyfunction]
#[pyo3(signature = (source, table, index, *, align=false))]
fn read_frame<'py>(
    source: &Bound<'py, PyAny>,
    table: &Bound<'py, PyFrameTable>,
    #[pyo3(from_py_with = number)] index: isize,
    align: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let index = table.get().index(index)?;
    let mut read = read_several(source, &table.get().table, &[index], align)?;
    read.pop().ok_or_else(|| PyIndexError::new_err("no frame was read"))
}

/// The bytes of frames, each moved to the first bit with `align`.
fn read_several<'py>(
    source: &Bound<'py, PyAny>,
    table: &FrameTable,
    frames: &[usize],
    align: bool,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let py = source.py();
    let mut unfilled = if align { None } else { Unfilled::new(py, table, frames)? };
    let mut places = unfilled.as_mut().map(|bytes| bytes.places().into_iter());
    let others: Vec<Option<FrameBytes>> = with_source(source, |source| {
        let mut others = Vec::with_capacity(frames.len());
        let length =
            |&frame: &usize| table.ranges(frame).map(|(start, end)| end.saturating_sub(start)).sum::<u64>();
        let mut rest = frames;
        while !rest.is_empty() {
            let (group, behind) = rest.split_at(together(rest.iter().map(length)));
            if source.remote().is_some() && group.len() > 1 {
                table.check_state(source)?;
                prefetch(source, table, group.iter().copied())?;
            }
            for &frame in group {
                others.push(match places.as_mut().map(Iterator::next) {
                    Some(Some(place)) => read_frame_into(source, table, frame, place)?,
                    _ => Some(read_aligned(source, table, frame, align)?),
                });
            }
            rest = behind;
        }
        Ok(others)
    })?;
    let mut filled = unfilled.map(Unfilled::filled).unwrap_or_default().into_iter();
    let bytes = others.into_iter().map(|other| {
        let filled = filled.next();
        other.map_or(filled, |bytes| Some(PyBytes::new(py, &bytes)))
    });
    Ok(bytes.flatten().collect())
}

/// SOP Instance UID of what is before the pixels, which are not looked at.
#[pyfunction]
fn read_instance_uid(source: &Bound<'_, PyAny>) -> PyResult<String> {
    let table = with_source(source, |source| dicom::read_identity(source, &mut Buffer::default()))?;
    Ok(table.image.sop_instance_uid.to_string())
}

#[pyfunction]
#[pyo3(signature = (source, table, indices, *, align=false))]
fn read_frames<'py>(
    source: &Bound<'py, PyAny>,
    table: &Bound<'py, PyFrameTable>,
    #[pyo3(from_py_with = number)] indices: Vec<isize>,
    align: bool,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let indices =
        indices.into_iter().map(|index| table.get().index(index)).collect::<PyResult<Vec<usize>>>()?;
    read_several(source, &table.get().table, &indices, align)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PARSER_VERSION", PARSER_VERSION)?;
    module.add("NOTES", Note::ALL.iter().map(|note| note.name()).collect::<Vec<_>>())?;
    module.add("METHODS", Method::ALL.iter().map(|method| method.name()).collect::<Vec<_>>())?;
    module.add_class::<PyFrameTable>()?;
    module.add_function(wrap_pyfunction!(read_table, module)?)?;
    module.add_function(wrap_pyfunction!(read_frame, module)?)?;
    module.add_function(wrap_pyfunction!(read_frames, module)?)?;
    module.add_function(wrap_pyfunction!(read_instance_uid, module)?)
}
