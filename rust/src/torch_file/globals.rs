//! The globals (callables) that a pickle may name, and the element types that they stand for.

/// What `torch.load(weights_only=True)` accepts without being told (`_get_allowed_globals()`, torch 2.15)
/// and what `import monai` registers; a test compares both with the installed packages.
pub const ALLOWED_GLOBALS: &[&str] = &[
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "monai.data.meta_obj.MetaObj",
    "monai.data.meta_tensor.MetaTensor",
    "monai.utils.enums.MetaKeys",
    "monai.utils.enums.SpaceKeys",
    "torch.BFloat16Storage",
    "torch.BFloat16Tensor",
    "torch.BoolStorage",
    "torch.BoolTensor",
    "torch.ByteStorage",
    "torch.ByteTensor",
    "torch.CharStorage",
    "torch.CharTensor",
    "torch.ComplexDoubleStorage",
    "torch.ComplexFloatStorage",
    "torch.DoubleStorage",
    "torch.DoubleTensor",
    "torch.FloatStorage",
    "torch.FloatTensor",
    "torch.HalfStorage",
    "torch.HalfTensor",
    "torch.IntStorage",
    "torch.IntTensor",
    "torch.LongStorage",
    "torch.LongTensor",
    "torch.QInt32Storage",
    "torch.QInt8Storage",
    "torch.QUInt2x4Storage",
    "torch.QUInt4x2Storage",
    "torch.QUInt8Storage",
    "torch.ShortStorage",
    "torch.ShortTensor",
    "torch.Size",
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_wrapper_subclass",
    "torch.bcomplex32",
    "torch.bfloat16",
    "torch.bits16",
    "torch.bits1x8",
    "torch.bits2x4",
    "torch.bits4x2",
    "torch.bits8",
    "torch.bool",
    "torch.complex128",
    "torch.complex32",
    "torch.complex64",
    "torch.cuda.BFloat16Storage",
    "torch.cuda.BFloat16Tensor",
    "torch.cuda.BoolStorage",
    "torch.cuda.BoolTensor",
    "torch.cuda.ByteStorage",
    "torch.cuda.ByteTensor",
    "torch.cuda.CharStorage",
    "torch.cuda.CharTensor",
    "torch.cuda.ComplexDoubleStorage",
    "torch.cuda.ComplexFloatStorage",
    "torch.cuda.DoubleStorage",
    "torch.cuda.DoubleTensor",
    "torch.cuda.FloatStorage",
    "torch.cuda.FloatTensor",
    "torch.cuda.HalfStorage",
    "torch.cuda.HalfTensor",
    "torch.cuda.IntStorage",
    "torch.cuda.IntTensor",
    "torch.cuda.LongStorage",
    "torch.cuda.LongTensor",
    "torch.cuda.ShortStorage",
    "torch.cuda.ShortTensor",
    "torch.cuda.sparse.BFloat16Tensor",
    "torch.cuda.sparse.ByteTensor",
    "torch.cuda.sparse.CharTensor",
    "torch.cuda.sparse.DoubleTensor",
    "torch.cuda.sparse.FloatTensor",
    "torch.cuda.sparse.HalfTensor",
    "torch.cuda.sparse.IntTensor",
    "torch.cuda.sparse.LongTensor",
    "torch.cuda.sparse.ShortTensor",
    "torch.device",
    "torch.float16",
    "torch.float32",
    "torch.float4_e2m1fn_x2",
    "torch.float64",
    "torch.float8_e4m3fn",
    "torch.float8_e4m3fnuz",
    "torch.float8_e5m2",
    "torch.float8_e5m2fnuz",
    "torch.float8_e8m0fnu",
    "torch.int1",
    "torch.int16",
    "torch.int2",
    "torch.int3",
    "torch.int32",
    "torch.int4",
    "torch.int5",
    "torch.int6",
    "torch.int64",
    "torch.int7",
    "torch.int8",
    "torch.nn.parameter.Parameter",
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.qint32",
    "torch.qint8",
    "torch.quint2x4",
    "torch.quint4x2",
    "torch.quint8",
    "torch.serialization._get_layout",
    "torch.sparse.BFloat16Tensor",
    "torch.sparse.ByteTensor",
    "torch.sparse.CharTensor",
    "torch.sparse.DoubleTensor",
    "torch.sparse.FloatTensor",
    "torch.sparse.HalfTensor",
    "torch.sparse.IntTensor",
    "torch.sparse.LongTensor",
    "torch.sparse.ShortTensor",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.uint1",
    "torch.uint16",
    "torch.uint2",
    "torch.uint3",
    "torch.uint32",
    "torch.uint4",
    "torch.uint5",
    "torch.uint6",
    "torch.uint64",
    "torch.uint7",
    "torch.uint8",
];

/// Globals that `weights_only=True` refuses but that are harmless to import and call: those of MONAI
/// MetaTensors with metadata, of NumPy arrays and of paths.
const INERT: &[&str] = &[
    "builtins.frozenset",
    "builtins.range",
    "builtins.slice",
    "monai.utils.enums.TraceKeys",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
];

/// Whether `weights_only=True` accepts the global.
pub(super) fn is_allowed(name: &str) -> bool {
    ALLOWED_GLOBALS.binary_search(&name).is_ok()
}

/// Whether importing and calling the global is harmless.
pub(super) fn is_inert(name: &str) -> bool {
    is_allowed(name)
        || INERT.contains(&name)
        || name
            .strip_prefix("numpy.dtypes.")
            .is_some_and(|class| class.ends_with("DType") && !class.contains('.'))
}

/// Translates Python 2's module names, which protocol 2 writes, as every unpickler does.
pub(super) fn python3_module(module: &str) -> &str {
    match module {
        "__builtin__" => "builtins",
        "copy_reg" => "copyreg",
        "exceptions" => "builtins",
        "commands" => "subprocess",
        "cPickle" => "pickle",
        "thread" => "_thread",
        "urllib2" => "urllib.request",
        other => other,
    }
}

/// Bytes of one element of a storage class or dtype, by the last part of its name.
pub(super) fn item_size(name: &str) -> Option<u64> {
    let size = match name.strip_prefix("torch.")? {
        "BoolStorage"
        | "ByteStorage"
        | "CharStorage"
        | "QInt8Storage"
        | "QUInt8Storage"
        | "QUInt4x2Storage"
        | "QUInt2x4Storage"
        | "storage.UntypedStorage"
        | "bool"
        | "uint8"
        | "int8"
        | "float8_e4m3fn"
        | "float8_e4m3fnuz"
        | "float8_e5m2"
        | "float8_e5m2fnuz"
        | "float8_e8m0fnu" => 1,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" | "float16" | "bfloat16" | "int16" | "uint16" => 2,
        "FloatStorage" | "IntStorage" | "QInt32Storage" | "float32" | "int32" | "uint32" | "complex32" => 4,
        "DoubleStorage"
        | "LongStorage"
        | "ComplexFloatStorage"
        | "float64"
        | "int64"
        | "uint64"
        | "complex64" => 8,
        "ComplexDoubleStorage" | "complex128" => 16,
        _ => return None,
    };
    Some(size)
}

/// The dtype of a storage class, as NumPy and torch name it.
pub(super) fn dtype_name(storage: &str) -> &str {
    match storage.strip_prefix("torch.").unwrap_or(storage) {
        "BoolStorage" => "bool",
        "ByteStorage" => "uint8",
        "CharStorage" => "int8",
        "ShortStorage" => "int16",
        "IntStorage" => "int32",
        "LongStorage" => "int64",
        "HalfStorage" => "float16",
        "BFloat16Storage" => "bfloat16",
        "FloatStorage" => "float32",
        "DoubleStorage" => "float64",
        "ComplexFloatStorage" => "complex64",
        "ComplexDoubleStorage" => "complex128",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_globals_are_sorted_for_the_search() {
        assert!(ALLOWED_GLOBALS.is_sorted());
        assert!(is_allowed("torch.FloatStorage"));
        assert!(!is_allowed("posix.system"));
    }

    #[test]
    fn only_dtype_classes_are_inert_in_numpy_dtypes() {
        assert!(is_inert("numpy.dtypes.Float64DType"));
        assert!(!is_inert("numpy.dtypes.sys.modules.DType"));
        assert!(!is_inert("builtins.eval"));
    }
}
