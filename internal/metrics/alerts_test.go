// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const rulesFile = "../../config/prometheus/prometheus_rule.yaml"

type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) (all []alert) {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var rule struct {
		Spec struct{ Groups []struct{ Rules []alert } }
	}
	if err := yaml.Unmarshal(text, &rule); err != nil {
		t.Fatal(err)
	}
	for _, g := range rule.Spec.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

var (
	metricName = regexp.MustCompile(`\bbmdb_\w+`)
	// selector is a metric with labels that are asked for, or followed by a range.
	selector  = regexp.MustCompile(`\b(bmdb_\w+)\{([^}]*)\}`)
	labelName = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	grouped   = regexp.MustCompile(`\bby\s*\(([^)]*)\)`)
	shown     = regexp.MustCompile(`\$labels\.(\w+)`)
)

// Alerts ask for metrics and labels that there are, and show labels that their expressions leave.
func TestAlertsFitTheMetrics(t *testing.T) {
	families, err := familiesOf(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	labels, kinds := map[string][]string{}, map[string]string{}
	for _, f := range families {
		labels[f.Name], kinds[f.Name] = f.Labels, f.Type
	}
	for _, a := range alerts(t) {
		var known []string // of all metrics of the expression
		for _, name := range metricName.FindAllString(a.Expr, -1) {
			if kinds[name] == "" {
				t.Errorf("%s: there is no metric %s", a.Alert, name)
			}
			if counts := strings.Contains(a.Expr, "increase("+name) || strings.Contains(a.Expr, "rate("+name); counts != (kinds[name] == "counter") {
				t.Errorf("%s: %s is a %s", a.Alert, name, kinds[name])
			}
			known = append(known, labels[name]...)
		}
		if len(metricName.FindAllString(a.Expr, -1)) == 0 {
			t.Errorf("%s asks for nothing", a.Alert)
		}
		for _, s := range selector.FindAllStringSubmatch(a.Expr, -1) {
			for _, l := range labelName.FindAllStringSubmatch(s[2], -1) {
				if !slices.Contains(labels[s[1]], l[1]) {
					t.Errorf("%s: %s has no label %s", a.Alert, s[1], l[1])
				}
			}
		}
		left := append([]string{"pod", "namespace"}, known...) // those of the scrape
		if strings.Contains(a.Expr, "max(") || strings.Contains(a.Expr, "absent(") {
			left = nil
		}
		for _, g := range grouped.FindAllStringSubmatch(a.Expr, -1) {
			left = strings.Split(strings.ReplaceAll(g[1], " ", ""), ",")
			for _, l := range left {
				if !slices.Contains(known, l) {
					t.Errorf("%s: grouped by %s, which none of its metrics has", a.Alert, l)
				}
			}
		}
		for _, text := range a.Annotations {
			for _, l := range shown.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(left, l[1]) {
					t.Errorf("%s shows label %s, which its expression does not have", a.Alert, l[1])
				}
			}
		}
		if a.Labels["severity"] == "" || a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s: want a severity, a summary and a description", a.Alert)
		}
	}
}

// Values of labels that alerts ask for are values that there are.
func TestAlertsAskForValuesThatThereAre(t *testing.T) {
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"Stalled", "Failed"} // a state of claims, and bmdb.EventFailed
	for _, m := range regexp.MustCompile(`\w+="([^"]*)"`).FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(known, m[1]) {
			t.Errorf("nothing has the value %q", m[1])
		}
	}
}
