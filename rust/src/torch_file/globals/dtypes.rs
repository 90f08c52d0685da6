//! The element types that storage classes and dtypes stand for.

/// Bytes of one element of a storage class or dtype, by the last part of its name.
pub fn item_size(name: &str) -> Option<u64> {
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
pub fn dtype_name(storage: &str) -> &str {
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
        "QUInt8Storage" => "quint8",
        "QInt8Storage" => "qint8",
        "QInt32Storage" => "qint32",
        other => other,
    }
}
