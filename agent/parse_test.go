// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/agent"
)

const (
	id1 = "6f0c1f4e-0000-4000-8000-000000000001"
	id2 = "6f0c1f4e-0000-4000-8000-000000000002"
	key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
)

func TestOwnerRoundTrip(t *testing.T) {
	o := agent.Owner{DatabaseID: uuid.MustParse(id1), MachineID: uuid.MustParse(id2), Pool: "metal", Name: "r7\"u12\n", Provider: "lab", ProviderID: "é"}
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := agent.ParseOwner(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(o, got); d != "" {
		t.Error(d)
	}
}

func TestParseOwner(t *testing.T) {
	for _, test := range []struct{ name, content, err string }{
		{"smallest", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `"}`, ""},
		{"of a later version", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `","new":{"a":[1]}}`, ""},
		{"empty", ``, "not a JSON object"},
		{"cut off", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `"`, "not a JSON object"},
		{"an array", `[]`, "not a JSON object"},
		{"two objects", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `"}{}`, "something follows"},
		{"a name twice", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `","databaseID":"` + id2 + `"}`, "occurs twice"},
		{"a name in other letters", `{"DatabaseID":"` + id1 + `","machineID":"` + id2 + `"}`, `"databaseID" is missing`},
		{"no machine", `{"databaseID":"` + id1 + `"}`, `"machineID" is missing`},
		{"null", `{"databaseID":null,"machineID":"` + id2 + `"}`, "is null"},
		{"a number", `{"databaseID":1,"machineID":"` + id2 + `"}`, "databaseID"},
		{"nil UUID", `{"databaseID":"` + uuid.Nil.String() + `","machineID":"` + id2 + `"}`, "no UUID"},
		{"another notation", `{"databaseID":"{` + id1 + `}","machineID":"` + id2 + `"}`, "no UUID"},
		{"not UTF-8", "{\"databaseID\":\"\xff\"}", "not UTF-8"},
		{"too long", `{"x":"` + strings.Repeat("x", agent.MaxOwnerBytes) + `"}`, "longer than"},
		{"name is no string", `{"databaseID":"` + id1 + `","machineID":"` + id2 + `","name":{}}`, `"name"`},
	} {
		t.Run(test.name, func(t *testing.T) { checkError(t, second(agent.ParseOwner([]byte(test.content))), test.err) })
	}
}

func TestParseReport(t *testing.T) {
	for _, test := range []struct{ name, content, err, facts string }{
		{"smallest", `{"publicKey":"` + key + `","alreadyRunning":false,"facts":{}}`, "", `{}`},
		{"with a line feed", `{"publicKey":"` + key + `","alreadyRunning":true,"facts":{"a":1}}` + "\n", "", `{"a":1}`},
		{"characters that databases refuse", `{"publicKey":"` + key + `","alreadyRunning":true,"facts":{"a\u0000":"b\u0000\ud800c"}}`, "", `{"a":"b` + "\ufffd" + `c"}`},
		{"numbers", `{"publicKey":"` + key + `","alreadyRunning":true,"facts":{"a":[9223372036854775807,1e2,null,true]}}`, "", `{"a":[9223372036854775807,100,null,true]}`},
		{"a huge number", `{"publicKey":"` + key + `","alreadyRunning":true,"facts":{"a":1e999999}}`, "out of range", ""},
		{"nested", `{"publicKey":"` + key + `","alreadyRunning":true,"facts":{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}}`, "deep", ""},
		{"no key", `{"alreadyRunning":false,"facts":{}}`, `"publicKey" is missing`, ""},
		{"short key", `{"publicKey":"AQ==","alreadyRunning":false,"facts":{}}`, "1 bytes", ""},
		{"key is no base64", `{"publicKey":"***","alreadyRunning":false,"facts":{}}`, "publicKey", ""},
		{"no facts", `{"publicKey":"` + key + `","alreadyRunning":false}`, `"facts" is missing`, ""},
		{"facts are null", `{"publicKey":"` + key + `","alreadyRunning":false,"facts":null}`, "facts", ""},
		{"facts are a list", `{"publicKey":"` + key + `","alreadyRunning":false,"facts":[]}`, "facts", ""},
		{"two lines", `{"publicKey":"` + key + `","alreadyRunning":false,"facts":{}}` + "\n{}", "something follows", ""},
		{"digest is none", `{"publicKey":"` + key + `","alreadyRunning":false,"facts":{},"binaryDigest":"00"}`, "SHA-256", ""},
		{"noise", "Welcome!\n{}", "not a JSON object", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := agent.ParseReport([]byte(test.content))
			checkError(t, err, test.err)
			if string(r.Facts) != test.facts {
				t.Errorf("facts are %s, want %s", r.Facts, test.facts)
			}
		})
	}
}

func FuzzParseOwner(f *testing.F) {
	f.Add([]byte(`{"databaseID":"` + id1 + `","machineID":"` + id2 + `","pool":"p"}`))
	f.Add([]byte(`{"databaseID":"` + id1 + `","databaseID":"` + id2 + `"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		o, err := agent.ParseOwner(content)
		if err != nil {
			if o != (agent.Owner{}) {
				t.Errorf("error with an owner: %+v", o)
			}
			return
		}
		b, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := agent.ParseOwner(b); err != nil || again != o {
			t.Errorf("%+v becomes %+v, %v", o, again, err)
		}
		if o.DatabaseID == uuid.Nil || o.MachineID == uuid.Nil {
			t.Errorf("accepted %+v", o)
		}
	})
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"publicKey":"` + key + `","alreadyRunning":false,"facts":{"a":[1,2.5,"\u0000\ud800"]}}`))
	f.Add([]byte(`{"publicKey":"` + key + `","alreadyRunning":true,"version":"v","pid":1,"binaryDigest":"","facts":{}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := agent.ParseReport(content)
		if err != nil {
			return
		}
		if len(r.PublicKey) != 32 || len(r.Facts) == 0 || r.Facts[0] != '{' || bytes.Contains(r.Facts, []byte(`\u0000`)) && !bytes.Contains(r.Facts, []byte(`\\u0000`)) {
			t.Errorf("accepted %+v", r)
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := agent.ParseReport(b)
		if err != nil {
			t.Fatalf("%s is not accepted again: %v", b, err)
		}
		if d := cmp.Diff(r, again); d != "" {
			t.Error(d)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func checkError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case err == nil && want != "":
		t.Errorf("accepted, want an error with %q", want)
	case err != nil && (want == "" || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want %q", err, want)
	}
}
