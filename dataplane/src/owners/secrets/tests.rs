//! What is masked, and what only looks alike.

use proptest::prelude::*;

use super::{MASK, mask};

/// Arguments, separated by `|`, as they are and as they are shown.
const MASKED: &[(&str, &str)] = &[
    // Long options, in both forms and any spelling.
    ("app|--password|hunter2|--verbose", "app|--password|***|--verbose"),
    ("app|--password=hunter2|x", "app|--password=***|x"),
    ("app|--password=a b,c&d;e|x", "app|--password=***|x"),
    ("app|--PassWord=hunter2", "app|--PassWord=***"),
    ("app|--client-secret|abc", "app|--client-secret|***"),
    ("app|--client_secret=abc", "app|--client_secret=***"),
    ("app|--clientSecret=abc", "app|--clientSecret=***"),
    ("app|-password|abc", "app|-password|***"),
    ("app|--api-key=abc|--apikey|def|--api_key=ghi", "app|--api-key=***|--apikey|***|--api_key=***"),
    ("app|--db.password=abc", "app|--db.password=***"),
    ("app|--token|abc|--token-ttl|5", "app|--token|***|--token-ttl|5"),
    ("app|--auth-token=abc", "app|--auth-token=***"),
    ("app|--access-key|AKIDEXAMPLE", "app|--access-key|***"),
    ("app|--passphrase|correct horse", "app|--passphrase|***"),
    ("app|--pin|1234", "app|--pin|***"),
    ("app|--password2=x", "app|--password2=***"),
    ("app|--private-key=MIIEvQIBADANBg", "app|--private-key=***"),
    ("app|--password|-x-|y", "app|--password|***|y"),
    ("tailscale|up|--authkey=tskey-1", "tailscale|up|--authkey=***"),
    ("gpg|--batch|--passphrase|x y|-d", "gpg|--batch|--passphrase|***|-d"),
    ("keytool|-storepass|changeit|-list", "keytool|-storepass|***|-list"),
    ("redis-server|--requirepass|abc|--port|6379", "redis-server|--requirepass|***|--port|6379"),
    ("redis-server|--masterauth|abc", "redis-server|--masterauth|***"),
    // Variables and definitions.
    ("env|DB_PASSWORD=abc|app", "env|DB_PASSWORD=***|app"),
    ("env|AWS_SECRET_ACCESS_KEY=a/b+c|AWS_REGION=eu", "env|AWS_SECRET_ACCESS_KEY=***|AWS_REGION=eu"),
    ("env|MYSQL_PWD=x|PGPASSWORD=y|app", "env|MYSQL_PWD=***|PGPASSWORD=***|app"),
    ("docker|run|-e|API_TOKEN=x|image", "docker|run|-e|API_TOKEN=***|image"),
    ("docker|run|-eAPI_TOKEN=x|image", "docker|run|-eAPI_TOKEN=***|image"),
    ("docker|run|--env=POSTGRES_PASSWORD=a=b|image", "docker|run|--env=POSTGRES_PASSWORD=***|image"),
    ("java|-Dspring.datasource.password=x|-jar|a.jar", "java|-Dspring.datasource.password=***|-jar|a.jar"),
    ("java|-Djavax.net.ssl.keyStorePassword=x", "java|-Djavax.net.ssl.keyStorePassword=***"),
    ("kubectl|create|--from-literal=password=a b", "kubectl|create|--from-literal=password=***"),
    ("helm|install|--set|a=b,db.password=x,c=d", "helm|install|--set|a=b,db.password=***,c=d"),
    ("mount|-o|username=u,password=p,vers=3", "mount|-o|username=u,password=***,vers=3"),
    ("app|PASSWORD_ROOT=x", "app|PASSWORD_ROOT=***"),
    // Programs whose options have no telling name.
    ("mysql|-uroot|-phunter2|shop", "mysql|-uroot|-p***|shop"),
    ("/usr/bin/mysqldump|-u|root|-phunter2", "/usr/bin/mysqldump|-u|root|-p***"),
    ("mariadb|-sNphunter2", "mariadb|-sNp***"),
    ("mysqladmin|-uroot|password|hunter2", "mysqladmin|-uroot|password|***"),
    ("sudo|mysql|-phunter2", "sudo|mysql|-p***"),
    ("sshpass|-p|hunter2|ssh|h", "sshpass|-p|***|ssh|h"),
    ("sshpass|-phunter2|ssh|-p|22|h", "sshpass|-p***|ssh|-p|22|h"),
    ("redis-cli|-a|hunter2|ping", "redis-cli|-a|***|ping"),
    ("curl|-u|user:pass|http://h/", "curl|-u|user:***|http://h/"),
    ("curl|-sSu|user:pa:ss|h", "curl|-sSu|user:***|h"),
    ("curl|-uuser:pass|h", "curl|-uuser:***|h"),
    ("curl|--user=user:pass|h", "curl|--user=user:***|h"),
    ("curl|-H|Authorization: Basic dTpw|h", "curl|-H|Authorization: ***|h"),
    ("curl|-HAuthorization: Bearer abc|h", "curl|-HAuthorization: ***|h"),
    ("curl|-H|X-Api-Key: abc|h", "curl|-H|X-Api-Key: ***|h"),
    ("curl|-H|X-Auth-Token:abc|h", "curl|-H|X-Auth-Token:***|h"),
    ("curl|-b|session=abc; x=y|h", "curl|-b|***|h"),
    ("curl|-H|Cookie: a=b; c=d|h", "curl|-H|Cookie: ***|h"),
    ("curl|-d|{\"user\": \"u\", \"password\": \"a b\"}|h", "curl|-d|{\"user\": \"u\", \"password\": \"***\"}|h"),
    ("curl|-d|{\"password\":\"a,b\",\"x\":1}|h", "curl|-d|{\"password\":\"***\",\"x\":1}|h"),
    ("curl|-d|grant=x&client_secret=a%20b&y=z|h", "curl|-d|grant=x&client_secret=***&y=z|h"),
    ("http|-a|user:pass|h", "http|-a|user:***|h"),
    ("smbclient|//h/s|-U|DOM/user%pass", "smbclient|//h/s|-U|DOM/user%***"),
    ("docker|login|-u|me|-p|hunter2|reg", "docker|login|-u|me|-p|***|reg"),
    ("skopeo|copy|--src-creds|u:p|a|b", "skopeo|copy|--src-creds|u:***|a|b"),
    ("ldapsearch|-x|-D|cn=admin|-w|hunter2", "ldapsearch|-x|-D|cn=admin|-w|***"),
    ("ldapsearch|-xLLLwhunter2", "ldapsearch|-xLLLw***"),
    ("openssl|rsa|-passin|pass:hunter2|-in|k", "openssl|rsa|-passin|pass:***|-in|k"),
    ("openssl|enc|-aes-256-cbc|-k|hunter2", "openssl|enc|-aes-256-cbc|-k|***"),
    ("sqlplus|-S|scott/tiger@db", "sqlplus|-S|scott/***@db"),
    ("lftp|-u|user,pass|h", "lftp|-u|user,***|h"),
    ("snmpwalk|-v2c|-c|private|h", "snmpwalk|-v2c|-c|***|h"),
    ("vault|login|hvs.CAES", "vault|login|***"),
    ("rabbitmqctl|change_password|u|hunter2", "rabbitmqctl|change_password|u|***"),
    ("htpasswd|-bc|file|user|hunter2", "htpasswd|-bc|file|user|***"),
    ("nmcli|dev|wifi|connect|ssid|password|hunter2", "nmcli|dev|wifi|connect|ssid|password|***"),
    ("xfreerdp|/u:me|/p:hunter2|/v:h", "xfreerdp|/u:me|/p:***|/v:h"),
    ("consul|agent|-encrypt=pUqJrVyVRj5jsiYE=|-encrypt|abc", "consul|agent|-encrypt=***|-encrypt|***"),
    ("vault|server|-dev-root-token-id=abc", "vault|server|-dev-root-token-id=***"),
    // Addresses.
    ("psql|postgresql://u:p@h:5432/db?x=y", "psql|postgresql://u:***@h:5432/db?x=y"),
    ("psql|postgresql://u:p/w@h/db", "psql|postgresql://u:***@h/db"),
    ("psql|host=h user=u password=p dbname=d", "psql|host=h user=u password=*** dbname=d"),
    ("psql|host=h password = 'a b' dbname=d", "psql|host=h password = '***' dbname=d"),
    ("app|jdbc:mysql://h/db?user=u&password=p&x=y", "app|jdbc:mysql://h/db?user=u&password=***&x=y"),
    ("app|jdbc:sqlserver://h:1;user=u;password=p;x=y", "app|jdbc:sqlserver://h:1;user=u;password=***;x=y"),
    ("app|jdbc:oracle:thin:u/p@h", "app|jdbc:oracle:thin:u/***@h"),
    ("app|Server=h;Uid=u;Pwd=p;Encrypt=yes", "app|Server=h;Uid=u;Pwd=***;Encrypt=yes"),
    ("app|AccountName=a;AccountKey=b==;X=y", "app|AccountName=a;AccountKey=***;X=y"),
    ("app|--dsn=root:p@tcp(h:3306)/db", "app|--dsn=root:***@tcp(h:3306)/db"),
    ("git|clone|https://x-access-token:t@h/r", "git|clone|https://x-access-token:***@h/r"),
    ("git|clone|https://0123456789abcdef0123@h/r", "git|clone|https://***@h/r"),
    ("wget|https://h/f?X-Amz-Signature=abc&x=y", "wget|https://h/f?X-Amz-Signature=***&x=y"),
    ("wget|https://h/f?sig=abc", "wget|https://h/f?sig=***"),
    ("app|--header|Bearer abc.def", "app|--header|Bearer ***"),
    ("git|-c|http.extraHeader=Authorization: Basic dTpw|x", "git|-c|http.extraHeader=Authorization: ***|x"),
    // Command lines in one piece: scripts, and titles that processes give themselves.
    ("sh|-c|PGPASSWORD='a b' psql -h db", "sh|-c|PGPASSWORD='***' psql -h db"),
    ("bash|-lc|mysql -u root -phunter2 shop", "bash|-lc|mysql -u root -p*** shop"),
    ("ssh|h|mysql -phunter2 shop", "ssh|h|mysql -p*** shop"),
    ("app worker --password hunter2 --port 80", "app worker --password *** --port 80"),
    ("app: token=abc serving", "app: token=*** serving"),
    ("sh|-c|curl -H \"Authorization: Bearer a\" h", "sh|-c|curl -H \"Authorization: ***\" h"),
    ("sh|-c|curl -u 'u:a b' h", "sh|-c|curl -u 'u:*** h"),
    ("mysql|-e|CREATE USER u IDENTIFIED BY 'a b'", "mysql|-e|CREATE USER u IDENTIFIED BY '***'"),
    ("psql|-c|ALTER ROLE u PASSWORD 'a b' VALID", "psql|-c|ALTER ROLE u PASSWORD '***' VALID"),
];

/// Tokens that say what they are: their beginning, which is no secret, and the rest.
const TOKENS: &[(&str, &str)] = &[
    ("ghp_", "0123456789abcdef0123"),
    ("glpat-", "0123456789abcdef0123"),
    ("xoxb-", "0123456789-abcdef"),
    ("hvs.", "CAESIJ0123456789abcdef"),
    ("eyJ", "hbGciOiJIUzI1NiJ9.e30.abc"),
];

/// Nothing in these is a secret.
const SHOWN: &[&str] = &[
    "app|--password-file|/run/secrets/db|--password-file=/x",
    "app|--password_file=/x|PASSWORD_FILE=/x|--passwordfile=/x",
    "app|--token-ttl|5|--token-url=https://h/t|--token-path|/x",
    "app|--secret-name|db|--secretName=db",
    "app|--no-password|-h|db",
    "openvpn|--auth-user-pass|/etc/auth.txt|--auth|SHA256|--tls-auth|ta.key|1",
    "kube-controller-manager|--use-service-account-credentials=true|--authorization-kubeconfig=/etc/c.conf",
    "kube-apiserver|--service-account-key-file=/etc/sa.pub|--kubelet-client-key=/etc/k.key|--enable-bootstrap-token-auth=true",
    "sshd|-o|PasswordAuthentication=no|-o|AuthorizedKeysCommand=/usr/bin/x",
    "app|--ask-password|db",
    "docker|login|--password-stdin|reg",
    "app|--max-tokens|4096|--tokenizer|auto|--max-new-tokens=5",
    "app|--private-key|/etc/key.pem|--key|/x|--ssh-key=~/.ssh/id",
    "app|GOOGLE_APPLICATION_CREDENTIALS=/etc/x.json",
    "app|PWD=/root|OLDPWD=/",
    "app|--bypass|h|--proxy-bypass=x|--compass=x",
    "app|--author|me|--keyboard=us|--monkey=1",
    "app|--secret|id=npm,src=/x",
    "mysql|-u|root|-p|shop|-P3306",
    "docker|run|-p|8080:80|-v|secret:/run/secret|mysql",
    "ssh|-p|22|user@host",
    "scp|user@host:/path|.",
    "curl|-u|user|http://h:80/a@b",
    "curl|-b|cookies.txt|--cookie-jar|x",
    "openssl|rsa|-passin|file:/x|-passout|env:PW",
    "image|registry/my-secret:1.2|nginx:1@sha256:abc",
    "https://[::1]:80/x|http://h:8080/|ssh://git@h/r",
    "sort|--key=2|-k|3",
    "app|--password=",
    "nginx: worker process",
    "postgres: alice shop 10.0.0.1(4000) idle",
    "app|the password is lost",
    "app|AWS_ACCESS_KEY_ID=AKIDEXAMPLE",
];

fn masked(line: &str) -> String {
    mask(&line.split('|').collect::<Vec<_>>(), false).join("|")
}

#[test]
fn secrets_are_masked() {
    let wrong: Vec<_> = MASKED.iter().map(|(line, shown)| (masked(line), shown)).filter(|(a, b)| a != *b).collect();
    assert!(wrong.is_empty(), "got, and expected: {wrong:#?}");
    assert!(MASKED.len() + SHOWN.len() >= 60);
}

#[test]
fn what_only_looks_alike_is_shown() {
    let wrong: Vec<_> = SHOWN.iter().map(|line| (masked(line), line)).filter(|(a, b)| a != *b).collect();
    assert!(wrong.is_empty(), "got, and expected: {wrong:#?}");
}

/// The kernel tells of a long command line's beginning only. Nothing of a secret is in it that is masked in the whole.
#[test]
fn where_a_line_is_cut_shows_nothing_of_a_secret() {
    for (line, shown) in MASKED {
        for (cut, _) in line.char_indices().skip(1) {
            let arguments: Vec<_> = line[..cut].split('|').collect();
            let text = mask(&arguments, true).join("|");
            let text = text.trim_end_matches(['"', '\'', ' ']);
            let known = text.strip_suffix(MASK).unwrap_or(text).trim_end_matches(['"', '\'']);
            assert!(shown.starts_with(known), "{:?}: {text:?} is not in {shown:?}", &line[..cut]);
        }
    }
}

#[test]
fn tokens_are_masked_wherever_they_are_cut() {
    for (beginning, rest) in TOKENS {
        let token = format!("{beginning}{rest}");
        assert_eq!(mask(&["app", &token, "x"], false), ["app", "***", "x"]);
        assert_eq!(mask(&["app", &format!("--with={token},x")], false), ["app", "--with=***,x"]);
        for cut in 1..rest.len() {
            assert_eq!(mask(&["app", &format!("{beginning}{}", &rest[..cut])], true), ["app", "***"]);
        }
    }
}

/// Lines of what the masker looks at.
fn arguments() -> impl Strategy<Value = Vec<String>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "password",
            "--password",
            "--token",
            "=",
            ":",
            "://",
            "@",
            "/",
            "?",
            "&",
            ";",
            ",",
            " ",
            "\"",
            "'",
            "\\",
            "-p",
            "-u",
            "mysql",
            "curl",
            "sshpass",
            "docker",
            "login",
            "openssl",
            "-passin",
            "pass:",
            "file:",
            "Bearer",
            "{",
            "}",
            "%",
            "vault",
            "htpasswd",
            "sqlplus",
            "a",
            "x1",
            "KEY",
            "api_key",
            "-c",
            "sh",
            "identified",
            "by",
            "***",
            "é",
            "\n",
            "ghp_0123456789abcdef",
            "eyJ",
            "--",
            "-",
            ".",
            "_",
            "tokens",
            "12",
            "id=",
            "cookie",
            "sig",
            "nmcli",
            "|",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z0-9]{1,4}",
    ];
    prop::collection::vec(prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn masking_twice_is_masking_once(arguments in arguments()) {
        let once = mask(&arguments, false);
        prop_assert_eq!(&mask(&once, false), &once);
    }

    #[test]
    fn masking_is_bounded(arguments in arguments(), cut: bool) {
        let masked = mask(&arguments, cut);
        prop_assert_eq!(masked.len(), arguments.len());
        for (before, after) in arguments.iter().zip(&masked) {
            prop_assert!(after.len() <= 3 * before.len(), "{before:?} {after:?}");
        }
    }

    #[test]
    fn any_text_is_masked(arguments in prop::collection::vec(any::<String>(), 0..8), cut: bool) {
        let masked = mask(&arguments, cut);
        prop_assert!(masked.iter().zip(&arguments).all(|(after, before)| after.len() <= 3 * before.len()));
    }

    /// Whatever the secret is, nothing of it is shown.
    #[test]
    fn nothing_of_a_secret_is_shown(secret in "[!-~]{1,20}") {
        // Letters that are nowhere else.
        let secret: String = secret.chars().map(|c| if c.is_ascii_alphanumeric() { 'Z' } else { c }).collect();
        prop_assume!(secret.contains('Z'));
        for before in ["--password=", "DB_PASSWORD=", "--from-literal=token=", "-Da.secret="] {
            let shown = mask(&["app", &format!("{before}{secret}"), "x"], false).join(" ");
            prop_assert!(!shown.contains('Z'), "{}", shown);
        }
        let next = ["--password", "--api-key"];
        // A value that looks like an option is one.
        for option in next.iter().filter(|_| !secret.starts_with("--")) {
            let shown = mask(&["app", option, &secret], false).join(" ");
            // As it is told, a path is where a key is.
            prop_assert!(!shown.contains('Z') || option.ends_with("key"), "{}", shown);
        }
        let mysql = mask(&["mysql", &format!("-p{secret}")], false).join(" ");
        prop_assert!(!mysql.contains('Z'), "{}", mysql);
        let json = mask(&["curl", "-d", &format!("{{\"password\": {:?}}}", secret)], false).join(" ");
        prop_assert!(!json.contains('Z'), "{}", json);
    }
}
