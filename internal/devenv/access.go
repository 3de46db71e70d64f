// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package devenv

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// probeTimeout ends one attempt to see whether a server answers.
const probeTimeout = 5 * time.Second

// writeCredentials makes the authority and the files that kube-apiserver reads.
func (c *ControlPlane) writeCredentials() error {
	authority, err := newAuthority()
	if err != nil {
		return err
	}
	serving, err := authority.server("localhost", "127.0.0.1", "10.0.0.1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	serviceAccountKey, err := newKey()
	if err != nil {
		return err
	}
	signing, err := privateKeyPEM(serviceAccountKey)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	verifying, err := publicKeyPEM(serviceAccountKey)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	for name, content := range map[string][]byte{
		"ca.crt":              authority.pem,
		"apiserver.crt":       serving.certificate,
		"apiserver.key":       serving.key,
		"service-account.key": signing,
		"service-account.pub": verifying,
	} {
		if err := os.WriteFile(c.state.Join(name), content, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	c.authority = authority
	return nil
}

// RESTConfig returns a copy of the configuration of a cluster administrator, without a limit of requests per second.
func (c *ControlPlane) RESTConfig() *rest.Config { return rest.CopyConfig(c.admin) }

// UserConfig returns the configuration of a user with a certificate of its own, who may do what RBAC grants to it and its
// groups.
func (c *ControlPlane) UserConfig(user string, groups ...string) (*rest.Config, error) {
	return c.configFor(c.port, user, groups...)
}

func (c *ControlPlane) configFor(port int, user string, groups ...string) (*rest.Config, error) {
	pair, err := c.authority.client(user, groups...)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", port),
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   c.authority.pem,
			CertData: pair.certificate,
			KeyData:  pair.key,
		},
		QPS: -1, // the server's own fairness is limit enough
	}, nil
}

// Kubeconfig writes the administrator's configuration to a file for kubectl.
func (c *ControlPlane) Kubeconfig(path string) error { return WriteKubeconfig(path, c.admin) }

// WriteKubeconfig writes a configuration that has its certificates or token in memory to a file that only this user can read.
func WriteKubeconfig(path string, config *rest.Config) error {
	const name = "bmdb-devenv"
	file := clientcmdapi.NewConfig()
	file.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Token: config.BearerToken}
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: "default"}
	file.CurrentContext = name
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return nil
}

func (c *ControlPlane) apiserverReady(ctx context.Context) error {
	client, err := rest.HTTPClientFor(c.admin)
	if err != nil {
		return err
	}
	return probeWith(ctx, client, c.admin.Host+"/readyz")
}

// closeIdleConnections ends the goroutines of the connections that this package opened.
func (c *ControlPlane) closeIdleConnections() {
	if c.admin == nil {
		return
	}
	if client, err := rest.HTTPClientFor(c.admin); err == nil {
		client.CloseIdleConnections()
	}
	http.DefaultClient.CloseIdleConnections()
}

func probe(ctx context.Context, url string) error { return probeWith(ctx, http.DefaultClient, url) }

func probeWith(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return nil
}
