//! Real container runtimes in a network namespace of their own, and cgroups made by hand.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::cri::Cri;
use crate::{Guard, here, program};

/// dockerd and containerd with CRI. They end with it.
pub struct Engines {
    dir: TempDir,
    netns: String,
}

impl Engines {
    /// Starts both in an existing network namespace.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn start(netns: &str) -> Self {
        let engines = Self { dir: tempfile::tempdir().expect("a folder"), netns: netns.into() };
        engines.script("up");
        engines
    }

    fn script(&self, what: &str) {
        // Not through a pipe: the runtimes would keep it open.
        let log = fs::File::create(self.dir.path().join(format!("{what}.log"))).expect("a log");
        let status = Command::new("bash")
            .arg(here("lab/containers.sh"))
            .args([what, &self.root().display().to_string(), &self.netns])
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a log"))
            .stdout(log)
            .status()
            .expect("bash");
        let said = fs::read_to_string(self.dir.path().join(format!("{what}.log"))).unwrap_or_default();
        assert!(status.success(), "containers.sh {what}: {said}");
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("engines")
    }

    /// A file of the runtimes.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A configuration that names both.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        config(self.dir.path(), &[("docker", &self.path("docker.sock")), ("cri", &self.path("containerd.sock"))])
    }

    /// Runs `docker` and returns what it says.
    ///
    /// # Panics
    /// If it fails.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker")
            .env("DOCKER_HOST", format!("unix://{}", self.path("docker.sock").display()))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("docker");
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a container of the test image, and returns its id and address.
    #[must_use]
    pub fn run_container(&self, name: &str, options: &[&str], shell: &str) -> (String, String) {
        let run = ["run", "-d", "--name", name];
        let id = self.docker(&[&run, options, &["ci.local/bb:1", "sh", "-c", shell]].concat());
        let ip = self.docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", name]);
        (id, ip)
    }

    /// containerd's CRI.
    #[must_use]
    pub fn cri(&self) -> Cri {
        Cri::new(&self.path("containerd.sock"))
    }

    /// Runs `ctr`, in containerd's namespace `default`.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctr(&self, args: &[&str]) {
        // Not through a pipe: the container would keep it open.
        let log = self.dir.path().join("ctr.log");
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.path("containerd.sock")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).expect("a log"));
        let status = command.status().expect("ctr");
        assert!(status.success(), "ctr {args:?}: {}", fs::read_to_string(log).unwrap_or_default());
    }

    /// Kills containerd as the kernel's OOM killer would, and starts it again.
    ///
    /// # Panics
    /// If there is none, or it does not start.
    pub fn restart_containerd(&self) {
        self.kill("containerd.pid");
        self.script("containerd");
    }

    fn kill(&self, file: &str) {
        let pid = fs::read_to_string(self.path(file)).expect("a pid");
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("a number"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it lives");
    }

    /// Kills dockerd as the kernel's OOM killer would.
    ///
    /// # Panics
    /// If there is none.
    pub fn kill_dockerd(&self) {
        self.kill("dockerd.pid");
    }

    /// Starts dockerd again.
    pub fn restart_dockerd(&self) {
        let _ = fs::remove_file(self.path("dockerd.pid"));
        self.script("dockerd");
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        let _ = Command::new("bash")
            .arg(here("lab/containers.sh"))
            .args(["down", &self.root().display().to_string(), &self.netns])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Writes a configuration that asks these runtimes and no other.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn config(dir: &Path, engines: &[(&str, &Path)]) -> PathBuf {
    let mut text = String::from("[runtimes]\n");
    for kind in ["docker", "podman", "cri"] {
        let sockets: Vec<String> = engines
            .iter()
            .filter(|(name, _)| *name == kind)
            .map(|(_, path)| format!("\"unix://{}\"", path.display()))
            .collect();
        text += &format!("{kind} = [{}]\n", sockets.join(", "));
    }
    let path = dir.join("sockeye.toml");
    fs::write(&path, text).expect("a configuration");
    path
}

/// A cgroup made by hand. Gone with its processes when it goes out of scope.
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes a path below the root of cgroup v2.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self::below(&mount_of(|kind, _| kind == "cgroup2").expect("cgroup v2"), path)
    }

    /// Makes a path below the root of the hierarchy that has the memory controller.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn of_memory(path: &str) -> Self {
        let v1 = mount_of(|kind, options| kind == "cgroup" && options.split(',').any(|option| option == "memory"));
        let root = v1.unwrap_or_else(|| {
            let root = mount_of(|kind, _| kind == "cgroup2").expect("cgroup v2");
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("the memory controller");
            root
        });
        Self::below(&root, path)
    }

    fn below(root: &Path, path: &str) -> Self {
        let mut dir = root.to_path_buf();
        let mut dirs = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            dir.push(part);
            if fs::create_dir(&dir).is_ok() {
                dirs.push(dir.clone());
            }
        }
        dirs.push(dir);
        dirs.dedup();
        Self { dirs }
    }

    fn dir(&self) -> &Path {
        self.dirs.last().expect("at least one")
    }

    /// What runs there: a shell that puts itself there, and becomes what its further arguments say then.
    #[must_use]
    pub fn shell(&self) -> Command {
        let mut command = Command::new("sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.dir().display());
        command.args(["-c", &script, "sh"]);
        command
    }

    /// One of our programs there.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.shell();
        command.arg(program(name));
        command
    }

    /// A process there that connects to a local port, and lives for some milliseconds: `brief`.
    #[must_use]
    pub fn brief(&self, port: u16, life_ms: u32, label: u16) -> Command {
        let mut command = self.command("brief");
        command.args([format!("127.0.0.1:{port}"), life_ms.to_string(), label.to_string()]).stdout(Stdio::piped());
        command
    }

    /// Bytes of kernel objects that are charged to it.
    ///
    /// # Panics
    /// If it has no memory controller.
    #[must_use]
    pub fn kernel_bytes(&self) -> i64 {
        let v1 = fs::read_to_string(self.dir().join("memory.kmem.usage_in_bytes"));
        let text = v1.unwrap_or_else(|_| {
            let stat = fs::read_to_string(self.dir().join("memory.stat")).expect("the memory controller");
            let slab = stat.lines().find_map(|line| line.strip_prefix("slab "));
            slab.expect("bytes of kernel objects").to_owned()
        });
        text.trim().parse().expect("a number")
    }
}

/// Where a file system of this kind and with these options is mounted.
fn mount_of(wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        wanted(kind, options).then(|| PathBuf::from(path))
    })
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            // Busy for a moment after the last process has ended, or shared with another test's cgroup.
            for _ in 0..50 {
                if fs::remove_dir(dir).is_ok()
                    || fs::read_dir(dir).is_ok_and(|mut d| d.any(|e| e.is_ok_and(|e| e.path().is_dir())))
                {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// Says the same of every container. Docker's API, as a user's own process, at a socket that is for that user alone.
const RUNTIME: &str = r#"
import json, os, socket, sys
os.umask(0o177)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    kept.append(connection)
    if connection.recv(4096).startswith(b"GET /containers/"):
        body = json.dumps({"Name": "/" + sys.argv[2], "Config": {"Image": "i:1"}}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
"#;

/// A user's Docker, by which every container has one name. With its folder, which a `sockeye check` of another test would find.
pub struct UserRuntime {
    folder: PathBuf,
    _python: Guard,
}

impl UserRuntime {
    /// Starts it. Whoever else wants to use it needs `CAP_DAC_OVERRIDE`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(uid: u32, name: &str) -> Self {
        let folder = Self::folder(uid);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        chown(&folder, Some(uid), Some(uid)).expect("root");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("permissions");
        let mut python = Command::new("python3");
        python.args(["-c", RUNTIME]).arg(folder.join("docker.sock")).arg(name).uid(uid).gid(uid);
        let mut python = python.stdout(Stdio::piped()).spawn().expect("python3");
        let mut said = String::new();
        BufReader::new(python.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
        assert_eq!(said, "ready\n");
        Self { folder, _python: Guard(python) }
    }

    /// Where the runtimes of a user have their sockets.
    #[must_use]
    pub fn folder(uid: u32) -> PathBuf {
        Path::new("/run/user").join(uid.to_string())
    }
}

impl Drop for UserRuntime {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
