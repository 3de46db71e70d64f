// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io/fs"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// The lists are bounded: a host of containers has thousands of interfaces.
const (
	maxInterfaces   = 64
	maxBlockDevices = 256
)

// Facts is what the agent can say about its machine. What it cannot find out
// is left out.
type Facts struct {
	Hostname     string `json:"hostname,omitempty"`
	MachineID    string `json:"machineID,omitempty"` // /etc/machine-id, of the installed system
	BootID       string `json:"bootID,omitempty"`    // another after each boot
	Kernel       string `json:"kernel,omitempty"`
	Architecture string `json:"architecture"` // as Go names it
	CPUs         int    `json:"cpus,omitempty"`
	MemoryBytes  int64  `json:"memoryBytes,omitempty"`
	// UptimeSeconds when the report was made.
	UptimeSeconds     int64              `json:"uptimeSeconds,omitempty"`
	NetworkInterfaces []NetworkInterface `json:"networkInterfaces,omitempty"`
	BlockDevices      []BlockDevice      `json:"blockDevices,omitempty"`
}

// NetworkInterface is an interface with a hardware address.
type NetworkInterface struct {
	Name       string `json:"name"`
	MACAddress string `json:"macAddress"`
	// Physical: a device stands behind it. These come first.
	Physical bool `json:"physical"`
}

// BlockDevice is a whole disk, no partition.
type BlockDevice struct {
	Name         string `json:"name"`
	SizeBytes    int64  `json:"sizeBytes"`
	Model        string `json:"model,omitempty"`
	SerialNumber string `json:"serialNumber,omitempty"`
	WWN          string `json:"wwn,omitempty"`
	Rotational   bool   `json:"rotational"`
}

// Gather collects the facts of this machine. root is the root file system
// (os.DirFS("/")), of which it reads /proc, /sys and /etc.
func Gather(root fs.FS) Facts {
	f := Facts{
		MachineID:         line(root, "etc/machine-id"),
		BootID:            line(root, "proc/sys/kernel/random/boot_id"),
		Kernel:            line(root, "proc/sys/kernel/osrelease"),
		Architecture:      runtime.GOARCH,
		CPUs:              cpus(root),
		MemoryBytes:       memory(root),
		UptimeSeconds:     uptime(root),
		NetworkInterfaces: interfaces(root),
		BlockDevices:      blockDevices(root),
	}
	f.Hostname, _ = os.Hostname() // left out where it is not known
	return f
}

// line returns the first line of a small file, "" where it cannot be read.
func line(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	s, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), ""))
}

// cpus counts the machine's, not those that this process may use.
func cpus(root fs.FS) int {
	b, err := fs.ReadFile(root, "proc/stat")
	if err != nil {
		return runtime.NumCPU()
	}
	n := 0
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "cpu") && len(l) > 3 && l[3] >= '0' && l[3] <= '9' {
			n++
		}
	}
	return n
}

func memory(root fs.FS) int64 {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		fields := strings.Fields(l)
		if len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func uptime(root fs.FS) int64 {
	whole, _, _ := strings.Cut(line(root, "proc/uptime"), ".")
	s, _ := strconv.ParseInt(whole, 10, 64)
	return s
}

func interfaces(root fs.FS) []NetworkInterface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var found []NetworkInterface
	for _, i := range all {
		if len(i.HardwareAddr) == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		_, err := fs.Stat(root, "sys/class/net/"+i.Name+"/device")
		found = append(found, NetworkInterface{Name: i.Name, MACAddress: i.HardwareAddr.String(), Physical: err == nil})
	}
	slices.SortFunc(found, func(a, b NetworkInterface) int {
		if a.Physical != b.Physical {
			if a.Physical {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return found[:min(len(found), maxInterfaces)]
}

func blockDevices(root fs.FS) []BlockDevice {
	entries, err := fs.ReadDir(root, "sys/block")
	if err != nil {
		return nil
	}
	var found []BlockDevice
	for _, e := range entries {
		name, dir := e.Name(), "sys/block/"+e.Name()
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") {
			continue
		}
		sectors, err := strconv.ParseInt(line(root, dir+"/size"), 10, 64)
		if err != nil || sectors <= 0 { // an empty drive
			continue
		}
		found = append(found, BlockDevice{
			Name:         name,
			SizeBytes:    sectors * 512, // the kernel counts in these, whatever the disk does
			Model:        line(root, dir+"/device/model"),
			SerialNumber: firstOf(line(root, dir+"/device/serial"), line(root, dir+"/serial")),
			WWN:          firstOf(line(root, dir+"/wwid"), line(root, dir+"/device/wwid")),
			Rotational:   line(root, dir+"/queue/rotational") == "1",
		})
	}
	return found[:min(len(found), maxBlockDevices)]
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
