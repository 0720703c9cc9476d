//! The built-in classes against the table, and what is refused.

use super::*;
use crate::error::Reason;

fn built_in() -> Classes {
    Classes::load("/nonexistent".as_ref()).expect("built in")
}

fn choice(name: &str, iops: u32, throughput_mib: u32) -> ClassChoice {
    ClassChoice::from_wire(name.to_owned(), iops, throughput_mib)
}

fn figures(name: &str, size_gib: u64, iops: u32, throughput_mib: u32) -> (u32, u32) {
    let figures = built_in().figures(&choice(name, iops, throughput_mib), size_gib * GIB);
    (figures.iops, figures.throughput_mib)
}

#[test]
fn figures_are_those_of_the_table() {
    for (name, size, iops, throughput, expected) in [
        ("gp2", 1, 0, 0, (100, 128)),
        ("gp2", 33, 0, 0, (100, 128)),
        ("gp2", 100, 0, 0, (300, 128)),
        ("gp2", 334, 0, 0, (1002, 250)),
        ("gp2", 16384, 0, 0, (16000, 250)),
        ("", 1, 0, 0, (3000, 125)),
        ("gp3", 100, 16000, 1000, (16000, 1000)),
        ("io1", 100, 5000, 0, (5000, 1000)),
        ("io2", 1000, 256_000, 0, (256_000, 4000)),
        ("st1", 1024, 0, 0, (500, 40)),
        ("st1", 16384, 0, 0, (500, 500)),
        ("sc1", 1024, 0, 0, (250, 12)),
        ("sc1", 16384, 0, 0, (250, 192)),
        ("standard", 1, 0, 0, (100, 90)),
    ] {
        assert_eq!(
            figures(name, size, iops, throughput),
            expected,
            "{name} {size}"
        );
    }
}

#[test]
fn bursts_are_those_of_the_table() {
    let burst = |name: &str, size: u64| {
        let limit = built_in().burst(&choice(name, 0, 0), size * GIB);
        limit.map(|limit| {
            let burst = limit.burst.expect("burst");
            (limit.per_second, burst.per_second, burst.most_credits)
        })
    };
    assert_eq!(burst("gp2", 100), Some((300, 3000, 5_400_000)));
    assert_eq!(burst("gp2", 1000), None, "the baseline is as much");
    assert_eq!(burst("st1", 1024), Some((40 * MIB, 250 * MIB, 1 << 40)));
    assert_eq!(burst("st1", 16384), None);
    assert_eq!(burst("sc1", 2048), Some((24 * MIB, 160 * MIB, 2 << 40)));
    assert_eq!(burst("gp3", 100), None);
    assert_eq!(burst("none", 100), None);
}

#[test]
fn what_is_out_of_range_is_refused_with_the_range() {
    let classes = built_in();
    for (name, size, iops, throughput, field, words) in [
        ("fast", 1, 0, 0, "x.volume_class", "gp3, gp2"),
        ("st1", 124, 0, 0, "x.size_gib", "125 to 16384 GiB"),
        ("gp3", 16385, 0, 0, "x.size_gib", "1 to 16384 GiB"),
        ("standard", 1025, 0, 0, "x.size_gib", "1 to 1024 GiB"),
        ("gp3", 10, 2999, 0, "x.iops", "3000 to 5000"),
        ("gp3", 10, 5001, 0, "x.iops", "3000 to 5000"),
        ("gp3", 1, 3001, 0, "x.iops", "3000 to 3000"),
        ("gp3", 1000, 16001, 0, "x.iops", "3000 to 16000"),
        ("gp3", 1000, 0, 124, "x.throughput_mib", "125 to 750"),
        ("gp3", 1000, 3000, 751, "x.throughput_mib", "125 to 750"),
        ("gp3", 1000, 16000, 1001, "x.throughput_mib", "125 to 1000"),
        ("io1", 4, 201, 0, "x.iops", "100 to 200"),
        ("io2", 4, 99, 0, "x.iops", "100 to 4000"),
    ] {
        let asked = choice(name, iops, throughput);
        let error = classes.check(&asked, size * GIB, "x.").expect_err(words);
        assert_eq!(error.reason(), Reason::InvalidParameterValue, "{error}");
        assert_eq!(error.fields(), [field]);
        assert!(error.message().contains(words), "{error}");
    }
}

#[test]
fn a_class_that_takes_no_figure_says_so_and_one_that_needs_it_too() {
    let classes = built_in();
    for (name, iops, throughput, field) in [
        ("gp2", 100, 0, "iops"),
        ("st1", 100, 0, "iops"),
        ("sc1", 0, 12, "throughput_mib"),
        ("io1", 100, 500, "throughput_mib"),
    ] {
        let error = classes
            .check(&choice(name, iops, throughput), 1000 * GIB, "")
            .expect_err(name);
        assert_eq!(error.reason(), Reason::InvalidParameterCombination);
        assert_eq!(error.fields(), [field]);
    }
    let error = classes
        .check(&choice("io2", 0, 0), 10 * GIB, "")
        .expect_err("needs iops");
    assert_eq!(error.reason(), Reason::MissingParameter);
    assert!(error.message().contains("100 to 10000"), "{error}");
}

#[test]
fn a_part_of_a_gib_counts_as_a_whole_one() {
    let classes = built_in();
    let default = choice("", 0, 0);
    classes
        .check(&default, 4096, "")
        .expect("a small image's root");
    assert_eq!(classes.figures(&default, 4096).iops, 3000);
}

fn load(operator: &str) -> Result<Classes, ClassesError> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("volume-classes.json");
    std::fs::write(&path, operator).expect("write");
    Classes::load(&path)
}

#[test]
fn the_operators_file_adds_classes_and_replaces_them() {
    let classes = load(
        r#"[{"name": "local", "medium": "ssd", "min_gib": 1, "max_gib": 65536},
            {"name": "gp3", "medium": "ssd", "min_gib": 2, "max_gib": 3, "iops": {"max": 7}}]"#,
    )
    .expect("fine");
    let local = choice("local", 0, 0);
    assert_eq!(classes.limits(&local, GIB, None), DiskLimits::default());
    assert_eq!(classes.figures(&local, GIB), Figures::default());
    assert_eq!(classes.figures(&choice("gp3", 0, 0), 2 * GIB).iops, 7);
    assert_eq!(classes.all().len(), 8);
}

#[test]
fn classes_that_no_volume_could_have_are_refused() {
    for bad in [
        r#""name": "", "min_gib": 1, "max_gib": 2"#,
        r#""name": "A", "min_gib": 1, "max_gib": 2"#,
        r#""name": "a", "min_gib": 0, "max_gib": 2"#,
        r#""name": "a", "min_gib": 3, "max_gib": 2"#,
        r#""name": "a", "min_gib": 1, "max_gib": 65537"#,
        r#""name": "a", "min_gib": 1, "max_gib": 2, "iops": {"max": 0}"#,
        r#""name": "a", "min_gib": 1, "max_gib": 2, "iops": {"max": 5, "min": 6}"#,
        r#""name": "a", "min_gib": 1, "max_gib": 2, "iops": {"max": 5, "per_gib": -1}"#,
        r#""name": "a", "min_gib": 1, "max_gib": 2, "iops": {"max": 5, "burst": {"max": 9}}"#,
        r#""name": "a", "min_gib": 1, "max_gib": 2,
           "iops": {"max": 5, "provisioned": {"min": 6}}"#,
    ] {
        let file = format!(r#"[{{"medium": "ssd", {bad}}}]"#);
        assert!(
            matches!(load(&file), Err(ClassesError::Class { .. })),
            "{bad}"
        );
    }
    assert!(matches!(load("{"), Err(ClassesError::Parse(_))));
    assert!(matches!(
        load(r#"[{"name": "a", "colour": 1}]"#),
        Err(ClassesError::Parse(_))
    ));
}
