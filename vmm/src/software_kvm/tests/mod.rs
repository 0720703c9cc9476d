//! Every instruction in [`native`] is run three times: by this machine's CPU, by our code on plain
//! data, and by a real guest at privilege level 0.

mod guest;
mod model;
mod native;

use super::*;

#[test]
fn software_kvm_is_told_by_its_module_unless_the_configuration_says() {
    let host = |modules: &'static [&str]| platform_of(|module| modules.contains(&module));
    assert_eq!(host(&["kvm", "kvm_pvm"]), Platform::Software);
    assert_eq!(host(&["kvm", "kvm_intel"]), Platform::Hardware);
    assert_eq!(host(&["kvm", "kvm_amd"]), Platform::Hardware);
    assert_eq!(host(&["kvm", "kvm_amd", "kvm_pvm"]), Platform::Hardware);
    assert_eq!(host(&[]), Platform::Hardware);
    assert_eq!(detect(PlatformChoice::Software), Platform::Software);
    assert_eq!(detect(PlatformChoice::Hardware), Platform::Hardware);
}

#[test]
fn cpuid_hides_what_is_dear_or_wrong_and_nothing_else() {
    let leaf = |function, ecx| kvm_cpuid_entry2 {
        function,
        ecx,
        ..Default::default()
    };
    let mut leaves = [
        leaf(0, 0),
        leaf(1, u32::MAX),
        leaf(7, 0),
        leaf(0x8000_0001, u32::MAX),
    ];
    adjust_cpuid(&mut leaves);
    let ecx = leaves.map(|leaf| leaf.ecx);
    assert_eq!(ecx, [0, !(1 << 13), 0, !(1 << 5)]);
}

#[test]
fn kernel_arguments_are_one_line_of_words() {
    assert!(!kernel_args().contains("  ") && !kernel_args().contains('\n'));
}
