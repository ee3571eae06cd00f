//! The messages of an ONNX file that are read and written here, by their numbers in onnx.proto of ONNX 1.16 and later.

use prost::Message;
use prost::bytes::Bytes;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$tag:meta])* $field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub(super) struct $name {
            $($(#[$tag])* pub $field: $type,)*
        })*
    };
}

messages! {
    /// A file.
    Model {
        #[prost(int64, tag = "1")]
        ir_version: i64,
        #[prost(string, tag = "2")]
        producer_name: String,
        #[prost(string, tag = "3")]
        producer_version: String,
        #[prost(message, optional, tag = "7")]
        graph: Option<Graph>,
        #[prost(message, repeated, tag = "8")]
        opset_import: Vec<OperatorSet>,
        #[prost(message, repeated, tag = "14")]
        metadata_props: Vec<Entry>,
        #[prost(message, repeated, tag = "25")]
        functions: Vec<Function>,
    }
    /// A version of a set of operators; the empty domain is ONNX's own.
    OperatorSet {
        #[prost(string, tag = "1")]
        domain: String,
        #[prost(int64, tag = "2")]
        version: i64,
    }
    /// Nodes in an order in which they can run.
    Graph {
        #[prost(message, repeated, tag = "1")]
        node: Vec<Node>,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(message, repeated, tag = "5")]
        initializer: Vec<Tensor>,
        #[prost(message, repeated, tag = "11")]
        input: Vec<ValueInfo>,
        #[prost(message, repeated, tag = "12")]
        output: Vec<ValueInfo>,
        #[prost(message, repeated, tag = "15")]
        sparse_initializer: Vec<Sparse>,
    }
    /// A tensor of few values, of which only that it is there matters.
    Sparse {
        #[prost(int64, repeated, tag = "3")]
        dims: Vec<i64>,
    }
    /// One operation.
    Node {
        #[prost(string, repeated, tag = "1")]
        input: Vec<String>,
        #[prost(string, repeated, tag = "2")]
        output: Vec<String>,
        #[prost(string, tag = "3")]
        name: String,
        #[prost(string, tag = "4")]
        op_type: String,
        #[prost(message, repeated, tag = "5")]
        attribute: Vec<Attribute>,
        #[prost(string, tag = "7")]
        domain: String,
        #[prost(string, tag = "8")]
        overload: String,
    }
    /// A setting of an operation.
    Attribute {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(float, tag = "2")]
        f: f32,
        #[prost(int64, tag = "3")]
        i: i64,
        #[prost(bytes = "bytes", tag = "4")]
        s: Bytes,
        #[prost(message, optional, boxed, tag = "5")]
        t: Option<Box<Tensor>>,
        #[prost(message, optional, boxed, tag = "6")]
        g: Option<Box<Graph>>,
        #[prost(float, repeated, tag = "7")]
        floats: Vec<f32>,
        #[prost(int64, repeated, tag = "8")]
        ints: Vec<i64>,
        #[prost(bytes = "bytes", repeated, tag = "9")]
        strings: Vec<Bytes>,
        /// Which of the above it is.
        #[prost(int32, tag = "20")]
        kind: i32,
        /// The attribute of the function around it whose value it has.
        #[prost(string, tag = "21")]
        ref_attr_name: String,
    }
    /// Values.
    Tensor {
        #[prost(int64, repeated, tag = "1")]
        dims: Vec<i64>,
        #[prost(int32, tag = "2")]
        data_type: i32,
        #[prost(float, repeated, tag = "4")]
        float_data: Vec<f32>,
        #[prost(int32, repeated, tag = "5")]
        int32_data: Vec<i32>,
        #[prost(int64, repeated, tag = "7")]
        int64_data: Vec<i64>,
        #[prost(string, tag = "8")]
        name: String,
        #[prost(bytes = "bytes", tag = "9")]
        raw_data: Bytes,
        #[prost(double, repeated, tag = "10")]
        double_data: Vec<f64>,
        #[prost(uint64, repeated, tag = "11")]
        uint64_data: Vec<u64>,
        #[prost(message, repeated, tag = "13")]
        external_data: Vec<Entry>,
        /// 1 where the values are in another file.
        #[prost(int32, tag = "14")]
        data_location: i32,
    }
    /// A text by name.
    Entry {
        #[prost(string, tag = "1")]
        key: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    /// What a value is.
    ValueInfo {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        kind: Option<Type>,
    }
    /// The type of a value, where it is a tensor.
    Type {
        #[prost(message, optional, tag = "1")]
        tensor: Option<TensorType>,
    }
    /// The type of a tensor.
    TensorType {
        #[prost(int32, tag = "1")]
        elem_type: i32,
        #[prost(message, optional, tag = "2")]
        shape: Option<TensorShape>,
    }
    /// The sizes of a tensor.
    TensorShape {
        #[prost(message, repeated, tag = "1")]
        dim: Vec<Dimension>,
    }
    /// A size: a number, a name, or not known.
    Dimension {
        #[prost(int64, optional, tag = "1")]
        value: Option<i64>,
        #[prost(string, optional, tag = "2")]
        param: Option<String>,
    }
    /// An operation that the file itself defines.
    Function {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, repeated, tag = "4")]
        input: Vec<String>,
        #[prost(string, repeated, tag = "5")]
        output: Vec<String>,
        #[prost(message, repeated, tag = "7")]
        node: Vec<Node>,
        #[prost(message, repeated, tag = "9")]
        opset_import: Vec<OperatorSet>,
        #[prost(string, tag = "10")]
        domain: String,
        /// Attributes with the values that they have where a node gives none.
        #[prost(message, repeated, tag = "11")]
        attribute_proto: Vec<Attribute>,
        #[prost(string, tag = "13")]
        overload: String,
    }
}

/// Element types by their numbers.
pub(super) mod dtype {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const UINT16: i32 = 4;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const UINT32: i32 = 12;
    pub const UINT64: i32 = 13;
    pub const BFLOAT16: i32 = 16;
}

/// Kinds of attributes by their numbers.
pub(super) mod kind {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const STRING: i32 = 3;
    pub const TENSOR: i32 = 4;
    pub const GRAPH: i32 = 5;
    pub const FLOATS: i32 = 6;
    pub const INTS: i32 = 7;
    pub const STRINGS: i32 = 8;
}
