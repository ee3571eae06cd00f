//! Every kernel of the table, with no GPU: parsed and validated by naga, translated to SPIR-V, MSL and HLSL, and its
//! parameters compared field by field with the host's.
#![cfg(feature = "gpu")]

use mnemon::gpu::{Binding, KERNELS, shaders, variants};
use mnemon::scheduler::Precision;
use mnemon::scheduler::strategy::{Executor, Limits, Target};
use naga::back::{hlsl, msl, spv};
use naga::proc::index;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// Only shaders whose name says so may use subgroups.
fn parse(name: &str, source: &str) -> (naga::Module, ModuleInfo) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
    let matrix = source.contains("enable wgpu_cooperative_matrix;");
    let subgroups = name.contains("_subgroup") || matrix;
    // All but some of WebGL have the packing of halves.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX, matrix);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    if subgroups {
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    }
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    (module, info)
}

/// A module for one entry point with its constants in place, in SPIR-V, MSL and HLSL.
fn translate(name: &str, source: &str, entry: &str, constants: &[(&str, f32)]) {
    let (module, info) = parse(name, source);
    let matrix = source.contains("enable wgpu_cooperative_matrix;");
    let subgroups = name.contains("_subgroup") || matrix;
    let constants = constants.iter().map(|&(name, value)| (name.to_string(), f64::from(value))).collect();
    let stage = Some((naga::ShaderStage::Compute, entry));
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, stage, &constants)
        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let options = spv::Options { lang_version: if subgroups { (1, 3) } else { (1, 1) }, ..Default::default() };
    let words = spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{name}: spir-v: {e}"));
    assert!(words.len() > 100, "{name}");
    let bounds = index::BoundsCheckPolicies::default();
    let options = msl::Options {
        lang_version: if matrix {
            (2, 3)
        } else if subgroups {
            (2, 1)
        } else {
            (1, 2)
        },
        bounds_check_policies: bounds,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{name}: msl: {e}"));
    assert!(text.contains("kernel void"), "{name}");
    if matrix {
        // DX12 has none, and no device there lists any.
        return;
    }
    let mut text = String::new();
    let options = hlsl::Options {
        shader_model: if subgroups { hlsl::ShaderModel::V6_0 } else { hlsl::ShaderModel::V5_1 },
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{name}: hlsl: {e}"));
    assert!(text.contains("numthreads"), "{name}");
}

#[test]
fn every_shader_is_valid_and_translates() {
    let all = shaders().unwrap();
    assert_eq!(all.len(), KERNELS.len());
    for (kernel, (name, source)) in KERNELS.iter().zip(&all) {
        // Overrides take their defaults.
        translate(name, source, kernel.entry, &[]);
    }
}

/// What the scheduler may choose on a GPU with WebGPU's limits, and on one with the usual ones.
#[test]
fn every_variant_translates() {
    for (invocations, workgroup) in [(256, 16384), (1024, 32768)] {
        let limits = Limits { subgroup: 32, uniform: 256, invocations, workgroup, resident: 128, ..Limits::HOST };
        let target =
            Target { executor: Executor::Gpu, limits, software: false, unified: false, precision: Precision::F32 };
        let all = variants(&target).unwrap();
        assert!(all.len() > 50, "{} variants", all.len());
        for v in &all {
            translate(&format!("{}: {}", v.kernel.name, v.name), &v.source, v.kernel.entry, &v.constants);
        }
    }
}

/// Browsers take what Dawn's compiler takes, which checks more than naga; only where `tint` is installed.
#[test]
fn tint_takes_every_shader() {
    let folder = std::env::temp_dir().join(format!("mnemon-tint-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, source) in shaders().unwrap() {
        if name.contains("_matrix") {
            continue; // The browser has no such extension.
        }
        // The extension that naga does not know by name yet.
        let enable = if name.contains("_subgroup") { "enable subgroups;\n" } else { "" };
        let path = folder.join(&name);
        std::fs::write(&path, format!("{enable}{source}")).unwrap();
        let Ok(output) = std::process::Command::new("tint")
            .args(["--format", "wgsl", "-o"])
            .arg(folder.join("out.wgsl"))
            .arg(&path)
            .output()
        else {
            eprintln!("tint is not installed: not checked");
            break;
        };
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// `Params` of the shader has the fields of the host's, in order, four bytes each; bindings are of the kinds listed.
#[test]
fn parameters_and_bindings_agree_with_the_table() {
    for (kernel, (name, source)) in KERNELS.iter().zip(shaders().unwrap()) {
        let (module, _) = parse(&name, &source);
        let (_, params) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).expect("Params");
        let naga::TypeInner::Struct { members, .. } = &params.inner else { panic!("{name}: Params is no struct") };
        let fields: Vec<_> = members.iter().map(|m| m.name.clone().unwrap_or_default()).collect();
        assert_eq!(fields, kernel.fields, "{name}");
        for (at, member) in members.iter().enumerate() {
            assert_eq!(member.offset as usize, 4 * at, "{name}: {:?}", member.name);
        }
        assert!(module.entry_points.iter().any(|e| e.name == kernel.entry), "{name}: {}", kernel.entry);
        let present = kernel.bindings.iter().enumerate().filter(|(_, binding)| **binding != Binding::Absent);
        for (at, binding) in present {
            let found = module.global_variables.iter().find(|(_, v)| v.binding.is_some_and(|b| b.binding == at as u32));
            let (_, variable) = found.unwrap_or_else(|| panic!("{name}: binding {at} is not declared"));
            let agrees = match (binding, variable.space) {
                (Binding::Params | Binding::Run, naga::AddressSpace::Uniform) => true,
                (Binding::Read, naga::AddressSpace::Storage { access }) => !access.contains(naga::StorageAccess::STORE),
                (Binding::Write, naga::AddressSpace::Storage { access }) => access.contains(naga::StorageAccess::STORE),
                _ => false,
            };
            assert!(agrees, "{name}: binding {at} is {binding:?} in the table, {:?} in the shader", variable.space);
        }
    }
}

#[test]
fn validation_refuses_a_broken_shader() {
    assert!(naga::front::wgsl::parse_str("fn f( { }").is_err());
}
