# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0

# The operator, with the agent for each architecture that a machine may have, and nothing else: no shell, no root.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH=amd64
ARG VERSION=unknown
ENV CGO_ENABLED=0
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" \
      -o /image/usr/local/bin/bmdb-operator ./cmd/bmdb-operator
RUN for arch in amd64 arm64; do \
      GOOS=linux GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$VERSION" \
        -o /image/usr/share/bmdb/bmdb-agent-linux-$arch ./cmd/bmdb-agent || exit 1; \
    done
# What programs expect of a system: whom to trust, who one is, and a place for temporary files.
RUN mkdir -p /image/etc/ssl/certs /image/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && echo 'bmdb:x:65532:65532:BMDB Operator:/:/sbin/nologin' >/image/etc/passwd \
 && echo 'bmdb:x:65532:' >/image/etc/group \
 && chmod 1777 /image/tmp

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/bmdb-operator"]
