// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package grammar

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const library = "../../bmdb"

// statement is a piece of SQL, and where it comes from.
type statement struct {
	from, name, sql string
}

func (s statement) String() string { return s.from + ": " + s.name }

// migrations are the files of the schema, without goose's comments.
func migrations(t *testing.T) (all []statement) {
	t.Helper()
	files, err := filepath.Glob(library + "/migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no migrations: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, statement{from: "migrations", name: filepath.Base(file), sql: string(text)})
	}
	return all
}

// pkg is the source of a package with the values of its constants.
type pkg struct {
	name  string
	fset  *token.FileSet
	files []*ast.File
	info  *types.Info
}

// load reads a package of the library. Constants need nothing of other packages, so these are not looked at.
func load(t *testing.T, dir string) *pkg {
	t.Helper()
	p := &pkg{name: filepath.Base(dir), fset: token.NewFileSet(), info: &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
	}}
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(p.fset, file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		p.files = append(p.files, f)
	}
	config := types.Config{Importer: nothing{importer.Default()}, Error: func(error) {}, FakeImportC: true}
	_, _ = config.Check(dir, p.fset, p.files, p.info) // what it cannot find of other packages is no concern here
	return p
}

// nothing imports packages that are empty.
type nothing struct{ types.Importer }

func (nothing) Import(path string) (*types.Package, error) {
	name := path[strings.LastIndex(path, "/")+1:]
	if regexp.MustCompile(`^v\d+$`).MatchString(name) {
		name = filepath.Base(filepath.Dir(path))
	}
	p := types.NewPackage(path, name)
	p.MarkComplete()
	return p, nil
}

// text is the value of an expression that is a constant string, or made of some by fmt.Sprintf, + and variables that are.
func (p *pkg) text(e ast.Expr, vars map[string]ast.Expr) (string, bool) {
	if v := p.info.Types[e].Value; v != nil && v.Kind() == constant.String {
		return constant.StringVal(v), true
	}
	switch e := e.(type) {
	case *ast.ParenExpr:
		return p.text(e.X, vars)
	case *ast.Ident:
		if c, ok := p.info.Uses[e].(*types.Const); ok && c.Val().Kind() == constant.String {
			return constant.StringVal(c.Val()), true
		}
		if value, ok := vars[e.Name]; ok {
			return p.text(value, vars)
		}
	case *ast.BinaryExpr:
		left, ok1 := p.text(e.X, vars)
		right, ok2 := p.text(e.Y, vars)
		return left + right, ok1 && ok2 && e.Op == token.ADD
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.SelectorExpr)
		if !ok || f.Sel.Name != "Sprintf" || len(e.Args) == 0 {
			return "", false
		}
		var parts []string
		for _, arg := range e.Args {
			s, ok := p.text(arg, vars)
			if !ok {
				return "", false
			}
			parts = append(parts, s)
		}
		args := make([]any, len(parts)-1)
		for i, s := range parts[1:] {
			args[i] = s
		}
		return fmt.Sprintf(parts[0], args...), true
	}
	return "", false
}

var (
	beginsLikeSQL = regexp.MustCompile(`(?i)^(\s|--[^\n]*\n)*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\w|DELETE\s+FROM\s|WITH\s+(RECURSIVE\s+)?\w+\s|CREATE\s|ALTER\s|DROP\s|TRUNCATE\s)`)
	verb          = regexp.MustCompile(`%(\[\d+\])?[sdvq]`)
)

// statements are all constants and variables of the package that are SQL, and all SQL that is written where it is used. templates are
// those that others are made of by fmt.Sprintf.
func (p *pkg) statements(t *testing.T) (all, templates []statement) {
	t.Helper()
	vars := map[string]ast.Expr{}
	each := func(visit func(file string, name *ast.Ident, value ast.Expr, kind token.Token)) {
		for _, f := range p.files {
			file := filepath.Base(p.fset.Position(f.Pos()).Filename)
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || (g.Tok != token.CONST && g.Tok != token.VAR) {
					continue
				}
				for _, s := range g.Specs {
					v := s.(*ast.ValueSpec)
					for i, value := range v.Values {
						visit(file, v.Names[i], value, g.Tok)
					}
				}
			}
		}
	}
	each(func(_ string, name *ast.Ident, value ast.Expr, kind token.Token) {
		if kind == token.VAR {
			vars[name.Name] = value
		}
	})
	each(func(file string, name *ast.Ident, value ast.Expr, _ token.Token) {
		sql, ok := p.text(value, vars)
		if strings.HasPrefix(name.Name, "sql") && name.Name != "sqlState" && !ok {
			t.Errorf("%s: the text of %s could not be made out", file, name.Name)
		}
		// In the library others than sql... are fragments, which are looked at where they are used.
		if !ok || !strings.HasPrefix(name.Name, "sql") && (p.name == "bmdb" || !beginsLikeSQL.MatchString(sql)) {
			return
		}
		s := statement{from: p.name + "/" + file, name: name.Name, sql: sql}
		if verb.MatchString(sql) {
			templates = append(templates, s)
			return
		}
		all = append(all, s)
	})
	for _, f := range p.files { // in functions
		file := filepath.Base(p.fset.Position(f.Pos()).Filename)
		for _, d := range f.Decls {
			function, ok := d.(*ast.FuncDecl)
			if !ok || function.Body == nil {
				continue
			}
			ast.Inspect(function.Body, func(n ast.Node) bool {
				e, ok := n.(ast.Expr)
				if !ok {
					return true
				}
				if _, isName := e.(*ast.Ident); isName {
					return true
				}
				sql, ok := p.text(e, nil)
				if ok && beginsLikeSQL.MatchString(sql) {
					all = append(all, statement{from: p.name + "/" + file, name: "in " + function.Name.Name, sql: sql})
					return false
				}
				return true
			})
		}
	}
	return all, templates
}

// everything is all SQL of the library.
func everything(t *testing.T) (all []statement) {
	t.Helper()
	all = migrations(t)
	for _, dir := range []string{library, library + "/model"} {
		statements, _ := load(t, dir).statements(t)
		all = append(all, statements...)
	}
	return all
}

var queryName = regexp.MustCompile(`(?m)^-- name: (\w+) :\w+$`)

// The collection is held to what must be in it, so that it cannot become empty unnoticed.
func TestNothingIsLeftOut(t *testing.T) {
	all := everything(t)
	names := map[string]bool{}
	for _, s := range all {
		names[s.name] = true
		for _, q := range queryName.FindAllStringSubmatch(s.sql, -1) {
			names[q[1]] = true
		}
	}
	// Every constant of the statements' files that is named like one.
	core := load(t, library)
	_, templates := core.statements(t)
	for _, f := range core.files {
		file := filepath.Base(core.fset.Position(f.Pos()).Filename)
		if !strings.HasPrefix(file, "statements") {
			continue
		}
		for ident, object := range core.info.Defs {
			if object == nil || core.fset.Position(ident.Pos()).Filename != core.fset.Position(f.Pos()).Filename || !strings.HasPrefix(ident.Name, "sql") {
				continue
			}
			isTemplate := slices.ContainsFunc(templates, func(s statement) bool { return s.name == ident.Name })
			if !names[ident.Name] && !isTemplate {
				t.Errorf("%s: %s is not looked at", file, ident.Name)
			}
		}
	}
	// Every query.
	files, err := filepath.Glob(library + "/model/queries/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no queries: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range queryName.FindAllStringSubmatch(string(text), -1) {
			if !names[q[1]] {
				t.Errorf("%s: %s was not generated", file, q[1])
			}
		}
	}
	if len(all) < 150 {
		t.Errorf("only %d statements were found", len(all))
	}
	for _, known := range []string{"sqlLockMachines", "sqlStartBatchFree", "sqlStartBatchClaim", "sqlEndsFree", "sqlEndsInClaimsWithFacts", "sqlRecompute", "MachineSetTag", "machinesOfProviderID"} {
		if !names[known] {
			t.Errorf("%s was not found", known)
		}
	}
}
