// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Config is all that flags and environment say. The flags' descriptions are its documentation.
type Config struct {
	DatabaseURL string
	LogLevel    string
	LogFormat   string

	ClusterID            string
	Namespaces           []string
	Lease                time.Duration
	WorkConcurrency      int
	WorkGrace            time.Duration
	StatusInterval       time.Duration
	ResyncInterval       time.Duration
	ManagerTakeoverAfter time.Duration
	AllowSimulated       bool
	AgentDir             string
	Reconciles           int
	DatabaseConnections  int32
	MetricsAddress       string
	MetricsSecure        bool
	MetricsCertDir       string
	HealthAddress        string
	Kubeconfig           string
	PodName              string

	origin string // which API server this is; empty: not known
}

func (c *Config) requireDatabase() error {
	if c.DatabaseURL == "" {
		return errors.New("--database-url (BMDB_DATABASE_URL) is required")
	}
	return nil
}

// complete checks the configuration of an operator and fills in what the host knows.
func (c *Config) complete() error {
	if err := c.requireDatabase(); err != nil {
		return err
	}
	for flag, ok := range map[string]bool{
		"--work-concurrency":       c.WorkConcurrency >= 1,
		"--concurrent-reconciles":  c.Reconciles >= 1,
		"--database-connections":   c.DatabaseConnections >= 1,
		"--work-grace":             c.WorkGrace > 0,
		"--status-interval":        c.StatusInterval >= 0,
		"--resync-interval":        c.ResyncInterval >= time.Second,
		"--manager-takeover-after": c.ManagerTakeoverAfter == 0 || c.ManagerTakeoverAfter >= 2*c.Lease,
	} {
		if !ok {
			return fmt.Errorf("%s is too small", flag)
		}
	}
	if err := c.requireMetricsCertificate(); err != nil {
		return err
	}
	if c.PodName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find this host's name, use --pod-name instead: %w", err)
		}
		c.PodName = host
	}
	return nil
}

// The names of the files in a directory with a certificate, as Secrets of type kubernetes.io/tls have them.
const (
	certificateFile = "tls.crt"
	keyFile         = "tls.key"
)

// requireMetricsCertificate sees that a certificate that was asked for is there: the server of metrics would make one of its own instead.
func (c *Config) requireMetricsCertificate() error {
	if c.MetricsCertDir == "" {
		return nil
	}
	if !c.MetricsSecure {
		return errors.New("--metrics-cert-dir is of use with --metrics-secure only")
	}
	for _, name := range []string{certificateFile, keyFile} {
		if _, err := os.Stat(filepath.Join(c.MetricsCertDir, name)); err != nil {
			return fmt.Errorf("find certificate of --metrics-cert-dir: %w", err)
		}
	}
	return nil
}
