//! What AMD's compiler makes of every kernel that the scheduler may choose, with no AMD GPU: Mesa's RADV compiles for a null
//! device and tells registers, spills, workgroup memory, occupancy and its own model of throughput.
//!
//!     cargo bench --bench rdna [-- FAMILY...]
//!
//! Families are Mesa's: NAVI21 (RDNA2), NAVI31 (RDNA3), GFX1201 (RDNA4), which are the default. Needs RADV and Vulkan's loader
//! (Debian: mesa-vulkan-drivers, libvulkan1). Exits with 1 where a kernel spills, and says which run fewer than eight
//! subgroups a SIMD.
#![allow(clippy::print_stdout, missing_docs)]

use ash::{Device, Entry, khr, vk};
use mnemon::gpu::{Binding, Variant, variants};
use mnemon::scheduler::Precision;
use mnemon::scheduler::strategy::{Executor, Limits, Target};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

type Failure = Box<dyn std::error::Error>;

/// The variable by which RADV takes a GPU that is not there.
const FORCE: &str = "RADV_FORCE_FAMILY";
const DRIVERS: &str = "VK_DRIVER_FILES";
const RADV: &str = "/usr/share/vulkan/icd.d/radeon_icd.json";
/// Subgroups a SIMD below which latency begins to show.
const OCCUPIED: u64 = 8;

fn main() -> ExitCode {
    // `cargo test --benches` runs it without cargo's flag: nothing is compiled then.
    if std::env::args().len() == 1 && std::env::var_os(FORCE).is_none() {
        println!("rdna: nothing to do; run it by cargo bench, or name families");
        return ExitCode::SUCCESS;
    }
    let result = match std::env::var(FORCE) {
        Ok(_) => one_family(),
        Err(_) => all_families(),
    };
    result.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::from(2)
    })
}

/// Runs itself once a family: the driver reads the variable when it is loaded.
fn all_families() -> Result<ExitCode, Failure> {
    let mut families: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if families.is_empty() {
        families = ["NAVI21", "NAVI31", "GFX1201"].map(String::from).to_vec();
    }
    let mut worst = 0;
    for family in families {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(FORCE, &family);
        if std::env::var_os(DRIVERS).is_none() {
            command.env(DRIVERS, RADV);
        }
        worst = worst.max(command.status()?.code().unwrap_or(2));
    }
    Ok(ExitCode::from(u8::try_from(worst)?))
}

fn one_family() -> Result<ExitCode, Failure> {
    let radv = Radv::open()?;
    println!("\n{}, driver {}", radv.name, radv.driver);
    println!(
        "{:>5} {:>5} {:>6} {:>7} {:>6} {:>8} {:>8}  kernel",
        "vgprs", "sgprs", "spills", "lds", "waves", "latency", "inverse"
    );
    let target = Target {
        executor: Executor::Gpu,
        limits: Limits {
            subgroup: 32,
            uniform: 256,
            invocations: 1024,
            workgroup: 32768,
            storage_bindings: 16,
            resident: 128,
            ..Limits::HOST
        },
        software: false,
        unified: false,
        precision: Precision::F32,
    };
    let (mut spilt, mut few) = (Vec::new(), Vec::new());
    let mut left_out = 0;
    for variant in variants(&target)? {
        // RDNA's units multiply squares of 16.
        if variant.kernel.is_matrix() && (!radv.matrix || !variant.source.contains("coop_mat16x16")) {
            left_out += usize::from(!radv.matrix);
            continue;
        }
        let statistics = radv.compile(&variant)?;
        let of = |name: &str| statistics.get(name).copied().unwrap_or(0);
        let spills = of("Spilled VGPRs") + of("Spilled SGPRs") + of("Scratch size");
        let waves = of("Subgroups per SIMD");
        println!(
            "{:>5} {:>5} {:>6} {:>7} {:>6} {:>8} {:>8}  {}",
            of("VGPRs"),
            of("SGPRs"),
            spills,
            of("LDS size"),
            waves,
            of("Latency"),
            of("Inverse Throughput"),
            variant.name
        );
        if spills > 0 {
            spilt.push(variant.name);
        } else if waves < OCCUPIED {
            few.push(variant.name);
        }
    }
    if left_out > 0 {
        println!("{left_out} that this GPU has no matrix units for");
    }
    println!("{} with fewer than {OCCUPIED} waves a SIMD: {}", few.len(), few.join("; "));
    println!("{} spill: {}", spilt.len(), spilt.join("; "));
    Ok(ExitCode::from(u8::from(!spilt.is_empty())))
}

/// The variant's SPIR-V with its constants in place, and which subgroups it needs.
fn spirv(variant: &Variant) -> Result<Vec<u32>, Failure> {
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    let module = naga::front::wgsl::parse_str(&variant.source)?;
    let info = validator.validate(&module)?;
    let constants = variant.constants.iter().map(|&(name, value)| (name.to_string(), f64::from(value))).collect();
    let entry = (naga::ShaderStage::Compute, variant.kernel.entry);
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, Some(entry), &constants)?;
    let options = naga::back::spv::Options {
        lang_version: (1, 3),
        zero_initialize_workgroup_memory: naga::back::spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: naga::proc::BoundsCheckPolicy::Unchecked,
            buffer: naga::proc::BoundsCheckPolicy::Unchecked,
            ..Default::default()
        },
        ..Default::default()
    };
    let pipeline = naga::back::spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: variant.kernel.entry.to_string(),
    };
    Ok(naga::back::spv::write_vec(&module, &info, &options, Some(&pipeline))?)
}

/// A device that compiles and cannot run.
struct Radv {
    _entry: Entry,
    device: Device,
    statistics: khr::pipeline_executable_properties::Device,
    name: String,
    driver: String,
    /// Whether it has matrix units.
    matrix: bool,
}

impl Radv {
    fn open() -> Result<Self, Failure> {
        // SAFETY: the loader is the system's; every handle below comes from the objects of this struct, which outlive it, and
        // every structure that a pointer names lives until the call returns. The process ends without destroying them.
        unsafe {
            let entry = Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance =
                entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
            let all = instance.enumerate_physical_devices()?;
            let physical = *all.first().ok_or("RADV offers no device; is mesa-vulkan-drivers installed?")?;
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let name = properties.properties.device_name_as_c_str()?.to_string_lossy().into_owned();
            let driver = driver.driver_info_as_c_str()?.to_string_lossy().into_owned();
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let mut executable =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
                .vulkan_memory_model(true)
                .vulkan_memory_model_device_scope(true)
                .shader_float16(true);
            let mut v11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
            let offered = instance.enumerate_device_extension_properties(physical)?;
            let matrix = offered.iter().any(|e| e.extension_name_as_c_str() == Ok(khr::cooperative_matrix::NAME));
            let mut cooperative = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(matrix);
            let mut extensions = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
            extensions.extend(matrix.then_some(khr::cooperative_matrix::NAME.as_ptr()));
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .push_next(&mut executable)
                .push_next(&mut v12)
                .push_next(&mut v11);
            let info = if matrix { info.push_next(&mut cooperative) } else { info };
            let device = instance.create_device(physical, &info, None)?;
            let statistics = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { _entry: entry, device, statistics, name, driver, matrix })
        }
    }

    fn compile(&self, variant: &Variant) -> Result<BTreeMap<String, u64>, Failure> {
        let words = spirv(variant)?;
        let entry = std::ffi::CString::new(variant.kernel.entry)?;
        let mut bindings = Vec::new();
        // A prelude may declare more bindings than the table: elementwise's sample does.
        let kinds = variant.kernel.bindings.iter().copied().chain([Binding::Write; 8]);
        for (at, kind) in kinds.enumerate() {
            let kind = match kind {
                Binding::Params | Binding::Run => vk::DescriptorType::UNIFORM_BUFFER,
                _ => vk::DescriptorType::STORAGE_BUFFER,
            };
            let binding = vk::DescriptorSetLayoutBinding::default().binding(at as u32).descriptor_type(kind);
            bindings.push(binding.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE));
        }
        // SAFETY: as in `open`.
        unsafe {
            let module = self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let layout = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let layouts = [self.device.create_descriptor_set_layout(&layout, None)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let layout = self.device.create_pipeline_layout(&layout, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default();
            let stage = stage.stage(vk::ShaderStageFlags::COMPUTE).module(module).name(&entry);
            let info = vk::ComputePipelineCreateInfo::default().layout(layout).stage(stage);
            let info = info.flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR);
            let pipelines = self.device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipeline = pipelines.map_err(|(_, e)| format!("{}: {e}", variant.name))?[0];
            let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            let all = self.statistics.get_pipeline_executable_statistics(&which)?;
            let mut named = BTreeMap::new();
            for s in all.iter().filter(|s| s.format == vk::PipelineExecutableStatisticFormatKHR::UINT64) {
                named.insert(s.name_as_c_str()?.to_string_lossy().into_owned(), s.value.u64);
            }
            Ok(named)
        }
    }
}
