// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// What the schema says of itself.
const (
	sqlSchemaVersionExists = `
SELECT EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = 'bmdb_schema_version')`

	// sqlSchemaOldest is what a schema says of older code. It is asked of one that has the table.
	sqlSchemaOldest = "SELECT COALESCE((SELECT oldest FROM schema_compatibility WHERE singleton = 1), 0)"

	sqlRaiseOldest = `
INSERT INTO schema_compatibility (singleton, oldest) VALUES (1, $1)
ON CONFLICT (singleton) DO UPDATE SET oldest = excluded.oldest WHERE schema_compatibility.oldest < excluded.oldest`

	// sqlMigratedFurther tells whether a newer version has migrated the schema.
	sqlMigratedFurther = "SELECT EXISTS (SELECT 1 FROM bmdb_schema_version WHERE is_applied AND version_id > $1)"
)
