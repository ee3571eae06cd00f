//! From a row of the kernel table to a pipeline: assembling the source, the bind-group layout, the cache.

use super::adapter::Context;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// What a kernel binds at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binding {
    /// The dispatch's parameters: a uniform with a dynamic offset.
    Params,
    /// The run's scalars: a uniform.
    Run,
    /// A storage buffer that is read.
    Read,
    /// A storage buffer that is read and written.
    Write,
    /// A number that this entry point of its shader does not use.
    Absent,
}

/// A row of the kernel table: one shader, one entry point, one bind-group layout.
#[derive(Debug)]
pub struct Kernel {
    /// The shader's file stem.
    pub name: &'static str,
    /// The shader's source, before imports.
    pub source: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// What it binds, by binding number; empty where a prelude declares more.
    pub bindings: &'static [Binding],
    /// The fields of its parameters, four bytes each, as the shader's `Params` has them.
    pub fields: &'static [&'static str],
}

const COMMON: &[(&str, &str)] = &[
    ("activation", include_str!("../../shaders/common/activation.wgsl")),
    ("attention", include_str!("../../shaders/common/attention.wgsl")),
    ("epilogue", include_str!("../../shaders/common/epilogue.wgsl")),
    ("grid", include_str!("../../shaders/common/grid.wgsl")),
    ("lstm_backward_cell", include_str!("../../shaders/common/lstm_backward_cell.wgsl")),
    ("lstm_forward_cell", include_str!("../../shaders/common/lstm_forward_cell.wgsl")),
    ("lstm_grid", include_str!("../../shaders/common/lstm_grid.wgsl")),
    ("lstm_norm_place", include_str!("../../shaders/common/lstm_norm_place.wgsl")),
    ("lstm_options", include_str!("../../shaders/common/lstm_options.wgsl")),
    ("lstm_rows", include_str!("../../shaders/common/lstm_rows.wgsl")),
    ("lstm_slopes", include_str!("../../shaders/common/lstm_slopes.wgsl")),
    ("math", include_str!("../../shaders/common/math.wgsl")),
    ("matmul_store", include_str!("../../shaders/common/matmul_store.wgsl")),
    ("matrix_tile", include_str!("../../shaders/common/matrix_tile.wgsl")),
    ("meeting", include_str!("../../shaders/common/meeting.wgsl")),
    ("memory", include_str!("../../shaders/common/memory.wgsl")),
    ("product_tile", include_str!("../../shaders/common/product_tile.wgsl")),
    ("step_tile", include_str!("../../shaders/common/step_tile.wgsl")),
    ("table", include_str!("../../shaders/common/table.wgsl")),
    ("threefry", include_str!("../../shaders/common/threefry.wgsl")),
    ("weight_gradient_operands", include_str!("../../shaders/common/weight_gradient_operands.wgsl")),
    ("weight_gradient_rows", include_str!("../../shaders/common/weight_gradient_rows.wgsl")),
    ("weights", include_str!("../../shaders/common/weights.wgsl")),
    ("weights_half", include_str!("../../shaders/common/weights_half.wgsl")),
    ("workgroup_sum", include_str!("../../shaders/common/workgroup_sum.wgsl")),
];

/// The beginning of a prelude that has weights read in 16 bits.
const HALF_WEIGHTS: &str = "// Weights in 16 bits.\n";

/// The beginning of what a prelude makes of an element of a product.
pub(super) const EPILOGUE: &str = "fn epilogue(x0: f32) -> f32 {";

impl Kernel {
    /// Whether it multiplies by matrix units.
    pub fn is_matrix(&self) -> bool {
        self.name.ends_with("_matrix")
    }

    /// Its prelude, where it reads weights in 16 bits or not, and where matrix units multiply squares of `side`.
    pub fn prelude(&self, halves: bool, side: usize) -> String {
        let mut prelude = String::new();
        if self.is_matrix() {
            let of = |name: &str, role: &str, bits: usize| {
                format!("alias {name} = coop_mat{side}x{side}<f{bits}, {role}>;\n")
            };
            prelude += "enable f16;\nenable wgpu_cooperative_matrix;\n";
            prelude += &format!("const SIDE: u32 = {side}u;\n");
            prelude += &[of("Left", "A", 16), of("Right", "B", 16), of("Sum", "C", 32)].concat();
        }
        if halves { format!("{HALF_WEIGHTS}{prelude}") } else { prelude }
    }
}

/// Joins a generated prelude, the imported files and the shader into one WGSL source.
pub fn assemble(prelude: &str, source: &str) -> Result<String> {
    let mut text = String::from(prelude);
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("// #import ") {
            let halves = name == "weights" && prelude.starts_with(HALF_WEIGHTS);
            let name = if halves { "weights_half" } else { name };
            if name == "epilogue" && prelude.contains(EPILOGUE) {
                continue;
            }
            let (_, import) = COMMON
                .iter()
                .find(|(stem, _)| *stem == name.trim())
                .ok_or_else(|| Error::internal(format!("shader: there is no common/{name}.wgsl")))?;
            text.push_str(import);
        }
    }
    text.push_str(source);
    Ok(text)
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub bindings: Vec<Binding>,
    /// Bytes of the parameters.
    pub params: u64,
    pub label: &'static str,
}

/// Values of a kernel's `override` constants.
pub(super) type Constants = Vec<(&'static str, f32)>;

/// All that a pipeline is made from.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    name: &'static str,
    entry: &'static str,
    prelude: String,
    bindings: Vec<Binding>,
    /// Bits of the constants.
    constants: Vec<(&'static str, u32)>,
}

/// Compiled kernels.
#[derive(Default)]
pub(super) struct Pipelines(HashMap<Key, Arc<Pipeline>>);

impl Pipelines {
    /// The pipeline of `kernel`, compiled at its first use. A prelude declares `bindings` in place of the kernel's own.
    pub fn get(
        &mut self,
        context: &Context,
        kernel: &'static Kernel,
        prelude: &str,
        bindings: Option<Vec<Binding>>,
        constants: &Constants,
    ) -> Result<Arc<Pipeline>> {
        let bindings = bindings.unwrap_or_else(|| kernel.bindings.to_vec());
        let (name, entry) = (kernel.name, kernel.entry);
        let bits = constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let key = Key { name, entry, prelude: prelude.to_string(), bindings: bindings.clone(), constants: bits };
        if let Some(pipeline) = self.0.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(build(context, kernel, prelude, bindings, constants)?);
        self.0.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }
}

fn build(
    context: &Context,
    kernel: &'static Kernel,
    prelude: &str,
    bindings: Vec<Binding>,
    constants: &Constants,
) -> Result<Pipeline> {
    let device = &context.device;
    let source = assemble(prelude, kernel.source)?;
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(source.into()) };
    // SAFETY: these are our own shaders, validated by naga in tests for every variant. Every index that they compute is
    // below the size of what is bound: launchers bind exactly the rows that the parameters name, and every thread
    // returns or clamps before it reads past them. Every loop counts to a parameter, so forced loop bounds (which cost
    // up to a hundred times, wgpu#7698) protect nothing. Debug builds keep all checks.
    let module = if cfg!(debug_assertions) {
        device.create_shader_module(descriptor)
    } else {
        unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    };
    let entries: Vec<wgpu::BindGroupLayoutEntry> = bindings
        .iter()
        .enumerate()
        .filter(|(_, binding)| **binding != Binding::Absent)
        .map(|(at, binding)| {
            let (ty, has_dynamic_offset) = match binding {
                Binding::Params => (wgpu::BufferBindingType::Uniform, true),
                Binding::Run => (wgpu::BufferBindingType::Uniform, false),
                Binding::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false),
                Binding::Write | Binding::Absent => (wgpu::BufferBindingType::Storage { read_only: false }, false),
            };
            wgpu::BindGroupLayoutEntry {
                binding: at as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
                count: None,
            }
        })
        .collect();
    let layout = device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(kernel.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some(kernel.entry),
        // Every kernel writes workgroup memory before it reads it.
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants.iter().map(|&(name, value)| (name, f64::from(value))).collect::<Vec<_>>(),
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    context.buffers.count_pipeline();
    context.check().map_err(|e| e.within(format!("kernel {}", kernel.name)))?;
    Ok(Pipeline { pipeline, layout, bindings, params: 4 * kernel.fields.len() as u64, label: kernel.name })
}
