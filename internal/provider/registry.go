// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Factory makes a driver out of settings. It does no I/O but on what the
// settings hold; the caller closes the driver.
type Factory[S any] func(settings S) (Driver, error)

// Registry maps the type of a provider ("SSH", "Simulated") to what makes its
// driver. It is a value that the program makes and passes on. S is whatever
// the program knows of a provider once it has read its configuration and
// secrets; drivers do not know it, the factories translate. Safe for
// concurrent use as long as nobody writes it. A nil Registry knows no type.
type Registry[S any] map[string]Factory[S]

// Open makes a driver of the named type. An unknown type, and a factory's
// failure that is not typed itself, are an [*Error] that needs a person.
func (r Registry[S]) Open(name string, settings S) (Driver, error) {
	factory, ok := r[name]
	if !ok {
		return nil, &Error{
			Reason:      ReasonTypeUnknown,
			Message:     fmt.Sprintf("provider type %q is not available here (available: %s)", name, strings.Join(r.Types(), ", ")),
			NeedsPerson: true,
		}
	}
	d, err := factory(settings)
	switch {
	case err == nil:
		return d, nil
	case ReasonOf(err) != "":
		return nil, fmt.Errorf("open provider of type %s: %w", name, err)
	default:
		return nil, &Error{Reason: ReasonConfigInvalid, Message: "open provider of type " + name, NeedsPerson: true, Err: err}
	}
}

// Types returns the registered types in order.
func (r Registry[S]) Types() []string { return slices.Sorted(maps.Keys(r)) }
