// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep facts are nested.
const maxDepth = 32

// parseObject reads data as exactly one JSON object and returns its members.
// Unlike encoding/json it refuses a name that occurs twice, and compares names
// exactly: two readers must never understand an owner file differently.
func parseObject(data []byte, limit int) (map[string]json.RawMessage, error) {
	if len(data) > limit {
		return nil, fmt.Errorf("longer than %d bytes", limit)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not a JSON object: %w", err)
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("not a JSON object")
		}
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("member %q occurs twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("not a JSON object: %w", err)
		}
		members[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

// member decodes a member that must be there.
func member(members map[string]json.RawMessage, name string, into any) error {
	raw, ok := members[name]
	if !ok {
		return fmt.Errorf("member %q is missing", name)
	}
	return decode(raw, name, into)
}

// optional decodes a member that may be missing.
func optional(members map[string]json.RawMessage, name string, into any) error {
	raw, ok := members[name]
	if !ok {
		return nil
	}
	return decode(raw, name, into)
}

func decode(raw json.RawMessage, name string, into any) error {
	if bytes.Equal(raw, []byte("null")) {
		return fmt.Errorf("member %q is null", name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("member %q: %w", name, err)
	}
	return nil
}

// normalize encodes a JSON object again so that any database can keep it:
// without NUL characters and lone surrogates, with numbers of a common size,
// nested at most maxDepth deep.
func normalize(raw json.RawMessage) (json.RawMessage, error) {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("not an object")
	}
	clean, err := cleanValue(object, 1)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(clean); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func cleanValue(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	switch v := v.(type) {
	case string:
		return strings.ReplaceAll(v, "\x00", ""), nil
	case json.Number:
		if _, err := v.Int64(); err == nil {
			return v, nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, errors.New("a number is out of range")
		}
		return f, nil
	case []any:
		for i := range v {
			c, err := cleanValue(v[i], depth+1)
			if err != nil {
				return nil, err
			}
			v[i] = c
		}
		return v, nil
	case map[string]any:
		clean := make(map[string]any, len(v))
		for name, value := range v {
			c, err := cleanValue(value, depth+1)
			if err != nil {
				return nil, err
			}
			clean[strings.ReplaceAll(name, "\x00", "")] = c
		}
		return clean, nil
	default:
		return v, nil
	}
}
