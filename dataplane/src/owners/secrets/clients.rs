//! Programs whose short options and arguments have secrets: what no name tells.

use super::Value::{self, After, Cookie, Reference, Secret};

/// How an option has its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `-pVALUE` only: without a value it asks.
    Glued,
    /// `-p VALUE` only.
    Next,
    /// Either.
    Both,
}

/// An option of a client.
pub(super) struct Rule {
    /// As it is written: `-p`, `--user`, `/p:`.
    pub(super) option: &'static str,
    pub(super) form: Form,
    pub(super) value: Value,
}

/// Programs that are alike.
pub(super) struct Client {
    /// Their names; with a `*`, the beginning of their names.
    names: &'static [&'static str],
    pub(super) rules: &'static [Rule],
    /// Short options without values, which others may be written behind: `-su USER:PASSWORD`.
    pub(super) switches: &'static str,
    /// The rules hold behind this word only.
    pub(super) after: Option<&'static str>,
    /// Arguments that have secrets without an option.
    pub(super) arguments: Arguments,
}

/// Which argument is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// None.
    Plain,
    /// What stands behind the name of a secret: `password VALUE`.
    Named,
    /// `USER/PASSWORD@DATABASE`.
    Oracle,
    /// So many further behind one of these words; of no word, behind the program.
    Nth(&'static [&'static str], usize),
}

const fn rule(option: &'static str, form: Form, value: Value) -> Rule {
    Rule { option, form, value }
}

const fn client(names: &'static [&'static str], rules: &'static [Rule]) -> Client {
    Client { names, rules, switches: "", after: None, arguments: Arguments::Plain }
}

const MYSQL: &[Rule] = &[rule("-p", Form::Glued, Secret)];
const SMB: &[Rule] = &[rule("-U", Form::Both, After('%')), rule("--user", Form::Both, After('%'))];
const P: &[Rule] = &[rule("-p", Form::Both, Secret)];
const CAPITAL_P: &[Rule] = &[rule("-P", Form::Both, Secret)];
const CURL: &[Rule] = &[
    rule("-u", Form::Both, After(':')),
    rule("--user", Form::Both, After(':')),
    rule("-U", Form::Both, After(':')),
    rule("--proxy-user", Form::Both, After(':')),
    rule("-E", Form::Both, After(':')),
    rule("--cert", Form::Both, After(':')),
    rule("--proxy-cert", Form::Both, After(':')),
    rule("-b", Form::Both, Cookie),
    rule("--cookie", Form::Both, Cookie),
];
const OPENSSL: &[Rule] = &[
    rule("-passin", Form::Next, Reference),
    rule("-passout", Form::Next, Reference),
    rule("-pass", Form::Next, Reference),
    rule("-k", Form::Next, Secret),
    rule("-K", Form::Next, Secret),
];
const SNMP: &[Rule] = &[rule("-c", Form::Both, Secret), rule("-A", Form::Both, Secret), rule("-X", Form::Both, Secret)];
const LDAP: &[Rule] = &[rule("-w", Form::Both, Secret)];

/// The first one that has a name counts.
static CLIENTS: [Client; 29] = [
    Client { arguments: Arguments::Named, ..client(&["mysqladmin", "mariadb-admin"], MYSQL) },
    client(&["mydumper", "myloader", "mytop", "mongo*", "sshpass", "cqlsh", "rdesktop", "ncftp*"], P),
    Client { switches: "BNsvtrfCqAnEXH", ..client(&["mysql*", "mariadb*", "xtrabackup", "mariabackup"], MYSQL) },
    client(&["redis-cli", "valkey-cli", "keydb-cli"], &[rule("-a", Form::Both, Secret)]),
    Client { switches: "sSfLkviIgjlnNOpqRaBGJMZ#012346", ..client(&["curl"], CURL) },
    client(&["http", "https", "xh", "xhs"], &[rule("-a", Form::Both, After(':'))]),
    client(&["smbclient", "smbget", "rpcclient", "net", "smbcacls", "winexe", "wmic", "smbtree"], SMB),
    Client { after: Some("login"), ..client(&["docker", "podman", "nerdctl", "buildah", "skopeo"], P) },
    Client { after: Some("login"), ..client(&["helm", "oc", "az", "crane", "oras", "regctl"], P) },
    client(
        &["ldappasswd"],
        &[rule("-w", Form::Both, Secret), rule("-s", Form::Both, Secret), rule("-a", Form::Both, Secret)],
    ),
    Client { switches: "xZvnLCcMAuT", ..client(&["ldap*"], LDAP) },
    client(&["openssl"], OPENSSL),
    client(&["sqlcmd", "bcp", "osql", "isql", "tsql", "zip", "unzip", "mosquitto_*"], CAPITAL_P),
    client(&["ipmitool", "ipmipower", "ipmi-*"], &[rule("-P", Form::Both, Secret), rule("-k", Form::Both, Secret)]),
    client(&["snmp*"], SNMP),
    client(&["7z", "7za", "7zr", "rar", "unrar"], &[rule("-p", Form::Glued, Secret), rule("-hp", Form::Glued, Secret)]),
    client(&["lftp"], &[rule("-u", Form::Both, After(','))]),
    client(&["xfreerdp", "xfreerdp3", "wlfreerdp"], &[rule("/p:", Form::Glued, Secret)]),
    client(&["useradd", "usermod"], P),
    client(&["samba-tool", "adcli"], SMB),
    Client { arguments: Arguments::Oracle, ..client(&["sqlplus", "sqlldr", "expdp", "impdp", "rman"], &[]) },
    Client { arguments: Arguments::Nth(&["login"], 1), ..client(&["vault", "bao"], &[]) },
    Client {
        arguments: Arguments::Nth(&["add_user", "change_password", "authenticate_user"], 2),
        ..client(&["rabbitmqctl"], &[])
    },
    Client { arguments: Arguments::Nth(&[], 3), ..client(&["htpasswd"], &[]) },
    Client { arguments: Arguments::Nth(&[], 2), ..client(&["wpa_passphrase"], &[]) },
    Client { arguments: Arguments::Named, ..client(&["nmcli", "aws", "pppd", "wpa_cli", "iwconfig"], &[]) },
    // Theirs mean something else than those of what stands before them.
    client(&["ssh", "scp", "sftp", "rsync"], &[]),
    client(&["consul", "nomad", "serf"], &[rule("-encrypt", Form::Both, Secret)]),
    client(&["swaks"], &[rule("-ap", Form::Next, Secret)]),
];

/// The client of this name.
pub(super) fn find(name: &str) -> Option<&'static Client> {
    if !(2..=24).contains(&name.len()) || !name.bytes().all(super::is_of_name) {
        return None;
    }
    // Each word of each command line comes here: first what is cheap to tell.
    let is = |known: &&str| {
        known.as_bytes()[0] == name.as_bytes()[0]
            && match known.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == *known,
            }
    };
    CLIENTS.iter().find(|client| client.names.iter().any(is))
}
