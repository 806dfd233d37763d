//! The programs of a Kubernetes control plane, built from the pinned Go modules in `xtask/tools`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{find, run};
use crate::workspace;

/// The version that the programs say they are. That of the module `k8s.io/kubernetes` in `kubernetes/go.mod`.
const VERSION: &str = "v1.34.4";

/// A Go module below `xtask/tools`, what of it is built, and the linker's flags.
struct Module {
    folder: &'static str,
    /// Program → package.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 2] = [
    Module {
        folder: "kubernetes",
        programs: &[
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
    },
    // Written against older libraries of Kubernetes than those above, so it has a module of its own.
    Module { folder: "kwok", programs: &[("kwok", "sigs.k8s.io/kwok/cmd/kwok")] },
];

/// Makes sure of etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl and kwok in `target/tools`: built
/// once, and again when their modules or the Go toolchain change. Those that the folder `KUBEBUILDER_ASSETS` has are not
/// built.
///
/// # Errors
/// When there is no Go toolchain, or it does not build them.
pub(crate) fn ensure_kubernetes() -> anyhow::Result<()> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS");
    let given = |program: &str| assets.as_ref().is_some_and(|dir| Path::new(dir).join(program).is_file());
    for module in &MODULES {
        let wanted: Vec<_> = module.programs.iter().filter(|(program, _)| !given(program)).copied().collect();
        ensure_module(module.folder, &wanted)?;
    }
    Ok(())
}

fn ensure_module(folder: &str, programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let tools = workspace::target().join("tools");
    let source = workspace::root().join("xtask/tools").join(folder);
    let read = |name: &str| {
        let path = source.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let recipe = format!("{}{}{VERSION}\n", read("go.mod")?, read("go.sum")?);
    let stamp = |program: &str| tools.join(format!("{program}.built-from"));
    let current = |program: &str| {
        tools.join(program).is_file() && fs::read_to_string(stamp(program)).is_ok_and(|text| text == recipe)
    };
    let missing: Vec<_> = programs.iter().filter(|(program, _)| !current(program)).copied().collect();
    let Some((first, _)) = missing.first() else { return Ok(()) };
    if find("go").is_none() {
        bail!(
            "the tests with a Kubernetes API server need {first}, and there is no Go toolchain to build it with. Install Go \
             1.24 or newer (https://go.dev/doc/install), or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and \
             kubectl (kube-controller-manager, kube-scheduler and kwok too, to do without Go)"
        );
    }
    fs::create_dir_all(&tools)?;
    // What is named like its package is built together: the linker uses one processor only.
    let (together, apart): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|(program, package)| package.ends_with(&format!("/{program}")));
    let mut builds: Vec<_> = apart.iter().map(|one| (tools.join(one.0), vec![*one])).collect();
    if !together.is_empty() {
        builds.push((tools.join(""), together));
    }
    for (output, programs) in builds {
        let names = programs.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ");
        eprintln!("xtask: building {names} into target/tools, from xtask/tools/{folder} (once; it takes minutes)");
        for (program, _) in &programs {
            // The stamp of what is replaced must not stand beside half of what replaces it.
            let _ = fs::remove_file(stamp(program));
        }
        let version = format!("-s -w -X k8s.io/component-base/version.gitVersion={VERSION}");
        let mut command = Command::new("go");
        command.args(["build", "-mod=readonly", "-buildvcs=false", "-ldflags", &version, "-o"]).arg(&output);
        command.args(programs.iter().map(|(_, package)| *package)).current_dir(&source);
        run(command.env("CGO_ENABLED", "0").env("GOWORK", "off"))?;
        for (program, _) in &programs {
            fs::write(stamp(program), &recipe)?;
        }
    }
    Ok(())
}
