/** The path of the extension for this machine. */
export declare function loadablePath(): string;

/** Anything with a method that loads an extension, as better-sqlite3 has. */
interface Db {
  loadExtension(file: string, entrypoint?: string | undefined): void;
}

/** Loads it into this process: once, before a node's file is opened. */
export declare function load(db: Db): void;
