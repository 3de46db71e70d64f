// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// reportedError is an error that is in the log already.
type reportedError struct{ error }

// Unwrap returns the error itself.
func (e reportedError) Unwrap() error { return e.error }

// logger returns the log that flags ask for.
func (c *Config) logger(out io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", c.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "json":
		return slog.New(quiet{slog.NewJSONHandler(out, options)}), nil
	case "text":
		return slog.New(quiet{slog.NewTextHandler(out, options)}), nil
	default:
		return nil, fmt.Errorf("--log-format %q is not json or text", c.LogFormat)
	}
}

// logAll makes log that of everybody in this process: of controller-runtime, of client-go, and of what knows only the standard library's
// logs, as its HTTP server. Each of them writes lines of its own making else.
func logAll(log *slog.Logger) {
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	slog.SetDefault(log)
}

// quiet lowers what is said over and over to debug: that a probe failed, each time one did. Why it does is logged once, by what it asks.
type quiet struct{ slog.Handler }

// failedProbe is what controller-runtime says of each probe.
const failedProbe = "healthz check failed"

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == failedProbe && r.Level < slog.LevelWarn {
		r.Level = slog.LevelDebug
		if !q.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
