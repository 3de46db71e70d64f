// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package grammar

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/cockroachdb-parser/pkg/sql/parser"
)

// CockroachDB's own grammar takes everything that the library says to a database.
func TestGrammar(t *testing.T) {
	for _, s := range everything(t) {
		parsed, err := parser.Parse(s.sql)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if len(parsed) != 1 {
			t.Errorf("%s: %d statements, want 1", s, len(parsed))
		}
	}
}

var (
	lineComment = regexp.MustCompile(`(?m)--.*$`)
	literal     = regexp.MustCompile(`'[^']*'`)
)

// code is the SQL without comments and without what stands in literals.
func (s statement) code() string {
	return literal.ReplaceAllString(lineComment.ReplaceAllString(s.sql, ""), "''")
}

// What one of the databases does not have, does otherwise, or does worse. The grammar accepts most of it.
var forbidden = []struct {
	what    string
	pattern *regexp.Regexp
	except  *regexp.Regexp // where it may stand
}{
	{what: "advisory locks: CockroachDB has none, or they do nothing", pattern: regexp.MustCompile(`(?i)advisory`)},
	{what: "savepoints: they free locks in one of the databases", pattern: regexp.MustCompile(`(?i)\bSAVEPOINT\b`)},
	{what: "deferrable constraints", pattern: regexp.MustCompile(`(?i)\b(DEFERRABLE|DEFERRED)\b`)},
	{what: "enums: a new value is a change of the schema", pattern: regexp.MustCompile(`(?i)\bCREATE\s+TYPE\b|\bAS\s+ENUM\b`)},
	{what: "LISTEN and NOTIFY", pattern: regexp.MustCompile(`(?i)\b(LISTEN|NOTIFY|pg_notify)\b`)},
	{what: "columns that nobody named", pattern: regexp.MustCompile(`(?i)(\bSELECT|\bRETURNING|,)\s+(\w+\.)?\*`)},
	{what: "types whose width differs: name BIGINT", pattern: regexp.MustCompile(`(?i)(\bAS\s+|::\s*|\s)(INT|INTEGER|SERIAL|BIGSERIAL|SMALLSERIAL)\b`)},
	{what: "keys from a sequence", pattern: regexp.MustCompile(`(?i)\b(SERIAL|BIGSERIAL|GENERATED\s+\w+\s+AS\s+IDENTITY|nextval)\b`)},
	{what: "the time of the transaction: it is no order", pattern: regexp.MustCompile(`(?i)\b(now\s*\(|CURRENT_TIMESTAMP|transaction_timestamp)`)},
	{what: "changes that cascade", pattern: regexp.MustCompile(`(?i)\bON\s+(DELETE|UPDATE)\s+CASCADE\b`)},
	{what: "weaker row locks: they are stronger in one of the databases", pattern: regexp.MustCompile(`(?i)\bFOR\s+(NO\s+KEY\s+UPDATE|KEY\s+SHARE)\b`)},
	{what: "locks of tables", pattern: regexp.MustCompile(`(?i)\bLOCK\s+TABLE\b`)},
	{what: "words of one database alone", pattern: regexp.MustCompile(`(?i)\b(UPSERT|ctid|xmin|txid_\w+|pg_\w+|crdb_internal\w*|AS\s+OF\s+SYSTEM\s+TIME)\b`)},
	{what: "settings of a connection outside of the dialect", pattern: regexp.MustCompile(`(?i)\bset_config\b`), except: regexp.MustCompile(`^bmdb/dialect\.go$`)},
	{what: "the state ready as something that is set: only the recompute does that", pattern: regexp.MustCompile(`(?i)\bSET\b[^;()]*\bstate\s*=\s*2\b`)},
	{what: "isolation that is named outside of the wrapper of transactions", pattern: regexp.MustCompile(`(?i)\bISOLATION\s+LEVEL\b`), except: regexp.MustCompile(`^bmdb/tx\.go$`)},
}

func TestPortable(t *testing.T) {
	for _, s := range everything(t) {
		for _, rule := range forbidden {
			if rule.except != nil && rule.except.MatchString(s.from) {
				continue
			}
			if found := rule.pattern.FindString(s.code()); found != "" {
				t.Errorf("%s: %q: %s", s, strings.TrimSpace(found), rule.what)
			}
		}
	}
}

// Each rule finds what it forbids.
func TestRulesFind(t *testing.T) {
	for _, sql := range []string{
		"SELECT pg_advisory_lock(1)", "SAVEPOINT x", "ALTER TABLE x ADD UNIQUE (y) DEFERRABLE", "CREATE TYPE x AS ENUM ()", "NOTIFY x", "SELECT * FROM x",
		"INSERT INTO x SELECT a FROM b RETURNING *", "SELECT a, b.* FROM b", "CREATE TABLE x (y INT)", "SELECT a::int", "CREATE TABLE x (y SERIAL)", "SELECT now()",
		"CREATE TABLE x (y UUID REFERENCES z (y) ON DELETE CASCADE)", "SELECT 1 FROM x FOR KEY SHARE", "LOCK TABLE x", "UPSERT INTO x VALUES (1)",
		"SELECT set_config(a, b, c)", "UPDATE work SET state = 2 WHERE x", "BEGIN ISOLATION LEVEL SERIALIZABLE",
	} {
		found := false
		for _, rule := range forbidden {
			found = found || rule.pattern.MatchString(statement{sql: sql}.code())
		}
		if !found {
			t.Errorf("no rule finds %q", sql)
		}
	}
	for _, sql := range []string{"SELECT count(*) FROM x", "SELECT a * b FROM x", "SELECT 'now() *' FROM x", "UPDATE x SET y = 1 WHERE state = 2 -- SELECT *"} {
		for _, rule := range forbidden {
			if rule.pattern.MatchString(statement{sql: sql}.code()) && !strings.Contains(sql, "state = 2") {
				t.Errorf("%q is found: %s", sql, rule.what)
			}
		}
	}
	if n := mutatedTwice("WITH a AS (UPDATE x SET y = 1), b AS (INSERT INTO x (y) VALUES (1) ON CONFLICT (y) DO UPDATE SET y = 2) SELECT 1 FROM z FOR UPDATE"); n != "x" {
		t.Errorf("two mutations of a table: found %q", n)
	}
}

var (
	noMutation = regexp.MustCompile(`(?i)\b(FOR|DO)\s+UPDATE\b(\s+OF\s+\w+)?(\s+SET\b)?`)
	mutation   = regexp.MustCompile(`(?i)\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(\w+)`)
)

// mutatedTwice returns a table that a statement writes in two places, or "".
func mutatedTwice(code string) string {
	seen := map[string]bool{}
	for _, m := range mutation.FindAllStringSubmatch(noMutation.ReplaceAllString(code, ""), -1) {
		if seen[m[1]] {
			return m[1]
		}
		seen[m[1]] = true
	}
	return ""
}

// CockroachDB refuses two mutations of one table in a statement.
func TestOneMutationOfATable(t *testing.T) {
	for _, s := range everything(t) {
		if table := mutatedTwice(s.code()); table != "" {
			t.Errorf("%s writes %s twice", s, table)
		}
	}
}

var (
	idempotent = regexp.MustCompile(`(?is)^\s*(CREATE\s+(TABLE|(UNIQUE\s+)?INDEX)\s+IF\s+NOT\s+EXISTS|CREATE\s+OR\s+REPLACE\s+VIEW|ALTER\s+TABLE\s+(IF\s+EXISTS\s+)?\w+\s+(ADD\s+COLUMN\s+IF\s+NOT\s+EXISTS|DROP\s+COLUMN\s+IF\s+EXISTS)|DROP\s+(INDEX|TABLE|VIEW)\s+IF\s+EXISTS)\b`)
	numbered   = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)
)

// Each migration is one change that may be made again, outside of a transaction.
func TestMigrations(t *testing.T) {
	for i, s := range migrations(t) {
		m := numbered.FindStringSubmatch(s.name)
		if m == nil {
			t.Errorf("%s: want NNNN_slug.sql", s.name)
			continue
		}
		if want := i + 1; strings.TrimLeft(m[1], "0") != itoa(want) {
			t.Errorf("%s: want number %d: a gap, or one too many", s.name, want)
		}
		if !strings.Contains(s.sql, "-- +goose NO TRANSACTION\n") || !strings.Contains(s.sql, "-- +goose Up\n") || strings.Contains(s.sql, "+goose Down") {
			t.Errorf("%s: want NO TRANSACTION, Up and no Down", s.name)
		}
		if !idempotent.MatchString(strings.TrimSpace(lineComment.ReplaceAllString(s.sql, ""))) {
			t.Errorf("%s: it cannot be made again", s.name)
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// Processes are rows, and the schema names none of them.
func TestProcessesAreNotInTheSchema(t *testing.T) {
	names := regexp.MustCompile(`\b(AgentStart|AgentRecovery|OSInstall|Shepherd\w+|UnitTest\d)\b`)
	for _, s := range migrations(t) {
		if found := names.FindString(lineComment.ReplaceAllString(s.sql, "")); found != "" {
			t.Errorf("%s names process %s", s.name, found)
		}
	}
}

// The predicate stands in one place. What it is made of may be shown elsewhere, and is not decided there.
func TestPredicateStandsOnce(t *testing.T) {
	places := map[string]map[string]int{ // pattern: where, and how often
		`requires\s*<@|@>\s*\(?\w*\.?requires`: {"statements.go": 2}, // now, and later
		`NOT\s*\(\s*\w*\.?forbids\s*&&`:        {"statements.go": 1},
		`rq\.generation\s*>`:                   {"statements.go": 1}, // that an installation is due
		`interval '10 minutes'`:                {"statements.go": 1}, // that an agent is silent
	}
	var files []string
	for _, glob := range []string{"/*.go", "/model/*.go", "/model/queries/*.sql"} {
		found, err := filepath.Glob(library + glob)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	for pattern, want := range places {
		expression := regexp.MustCompile(pattern)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(file)
			if got := len(expression.FindAll(text, -1)); got != want[name] {
				t.Errorf("%s has %q %d times, want %d: use the constants of statements.go", name, pattern, got, want[name])
			}
		}
	}
}

// All SQL of the library is where it is looked for: in statements*.go, in the model, or in the few places that have a reason.
func TestPlaces(t *testing.T) {
	allowed := map[string]bool{
		"bmdb/dialect.go": true, // what differs between the databases
		"bmdb/migrate.go": true, // before there is a schema
		"bmdb/session.go": true, // SELECT 1
	}
	for _, s := range everything(t) {
		if strings.HasPrefix(s.from, "bmdb/") && !strings.HasPrefix(s.from, "bmdb/statements") && !allowed[s.from] {
			t.Errorf("%s: move it to statements*.go", s)
		}
	}
}
