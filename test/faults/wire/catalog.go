// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"hash/fnv"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Catalog knows the names of the library's statements, so that points on the wire have names that people know from the source. It is safe
// for concurrent use.
type Catalog struct{ entries []entry }

// entry is a constant of the source. Its text may be made of pieces, with something else in between.
type entry struct {
	name   string
	pieces []string
	length int
}

var (
	generated = regexp.MustCompile(`^-- name: (\w+)`)
	// verb is where fmt.Sprintf puts something.
	verb   = regexp.MustCompile(`%(\[\d+\])?[sdqv]`)
	spaces = regexp.MustCompile(`\s+`)
)

// ReadCatalog reads the constants that hold SQL from the Go files of a directory.
func ReadCatalog(dir string) (*Catalog, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, fmt.Errorf("list source of %s: %w", dir, err)
	}
	constants := map[string]ast.Expr{}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read source: %w", err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("read source %s: %w", path, err)
		}
		collect(file, constants)
	}
	c := &Catalog{}
	for name, value := range constants {
		if e := (entry{name: strings.TrimPrefix(name, "sql")}); strings.HasPrefix(name, "sql") {
			e.expand(value, constants)
			if e.length > 0 {
				c.entries = append(c.entries, e)
			}
		}
	}
	if len(c.entries) == 0 {
		return nil, fmt.Errorf("read source of %s: no statements in it", dir)
	}
	return c, nil
}

// collect adds the constants of a file.
func collect(file *ast.File, constants map[string]ast.Expr) {
	for _, d := range file.Decls {
		group, ok := d.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, s := range group.Specs {
			if value, ok := s.(*ast.ValueSpec); ok && len(value.Values) == 1 {
				constants[value.Names[0].Name] = value.Values[0]
			}
		}
	}
}

// expand adds the pieces of an expression, those of the constants that it names among them.
func (e *entry) expand(value ast.Expr, constants map[string]ast.Expr) {
	ast.Inspect(value, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				e.addPieces(text)
			}
		case *ast.Ident:
			if named := constants[n.Name]; named != nil {
				e.expand(named, constants)
			}
		}
		return true
	})
}

func (e *entry) addPieces(text string) {
	for _, piece := range verb.Split(text, -1) {
		if piece = normal(piece); piece != "" {
			e.pieces = append(e.pieces, piece)
			e.length += len(piece)
		}
	}
}

func normal(sql string) string {
	return strings.TrimSpace(spaces.ReplaceAllString(strings.ReplaceAll(sql, "%%", "%"), " "))
}

// Name returns the name of a statement: the one that the source gives it, or, where the source does not know it, its first words and a
// digest.
func (c *Catalog) Name(sql string) string {
	if m := generated.FindStringSubmatch(sql); m != nil {
		return m[1]
	}
	text := normal(sql)
	words := strings.Fields(text)
	if len(words) == 0 {
		return "nothing"
	}
	switch first := strings.ToUpper(words[0]); first {
	case "BEGIN", "COMMIT", "ROLLBACK":
		return first
	}
	best := entry{}
	for _, e := range c.entries {
		// Of two with the same text it is always the same one.
		if (e.length > best.length || e.length == best.length && e.name < best.name) && e.matches(text) {
			best = e
		}
	}
	// A fragment that several statements have in common names none of them.
	if best.length*2 > len(text) {
		return best.name
	}
	digest := fnv.New32a()
	_, _ = digest.Write([]byte(text))
	return fmt.Sprintf("%s#%06x", strings.Join(words[:min(len(words), 2)], "_"), digest.Sum32()&0xffffff)
}

func (e entry) matches(text string) bool {
	for _, piece := range e.pieces {
		_, after, found := strings.Cut(text, piece)
		if !found {
			return false
		}
		text = after
	}
	return true
}
